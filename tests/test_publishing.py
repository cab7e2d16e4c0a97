"""What is published is whole, opens where this package is not installed, and says nothing that it should not.

The Hub is a stand-in on this machine.
"""

import copy
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import TOKEN, hub_server
from labram_folders import write_labram_folders
from prepared_folders import write_prepared
from published_folders import (
    JUNK,
    STEP,
    SUBJECTS,
    change_json,
    client,
    run_client,
    write_folders,
    write_tuned,
)
from safetensors.torch import load, load_file
from test_model_card import write_results

from neurolm_hf import LaBraMForMaskedEEGModeling, NeuroLMForCausalLM, NeuroLMVQModel
from neurolm_hf.dataset_card import write_card
from neurolm_hf.model_card import CardOptions, is_edited
from neurolm_hf.publishing import pack, publish, push_prepared
from neurolm_hf.simulation import simulate_recordings


REPOSITORY = Path(__file__).parents[1]
CODE = {file.name for file in (REPOSITORY / "neurolm_hf").glob("*_neurolm.py")}
DESCRIPTIONS = {"README.md", "config.json", "processor_config.json", "chat_template.jinja"}
DESCRIPTIONS |= {"tokenizer.json", "tokenizer_config.json"}
WHOLE = CODE | DESCRIPTIONS | {"generation_config.json", "model.safetensors"}
ADAPTER = CODE | DESCRIPTIONS | {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def tuned(folders, tmp_path):
    """A copy that a test may change."""
    return write_tuned(tmp_path / "tuned", folders / "pretrained")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, also for this process."""
    with hub_server(tmp_path / "hub") as running:
        running.open_to_this_process(monkeypatch, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


# --- what goes -------------------------------------------------------------------------------------------------------


def test_only_what_a_model_needs_goes(folders):
    parcel = pack(folders / "tuned")
    assert parcel.files.keys() == WHOLE
    assert parcel.left_out == sorted([*JUNK, "checkpoint-4/"])
    assert not parcel.edited_card
    assert parcel.files["model.safetensors"] == folders / "tuned" / "model.safetensors"


def test_labram_goes_with_its_own_code(tmp_path):
    folders = write_labram_folders(tmp_path)
    code = {f"{name}_neurolm.py" for name in ("channels", "checks", "configuration", "filtering", "layers")}
    code |= {"processing_neurolm.py", "reading_neurolm.py", "configuration_labram.py", "modeling_labram.py"}
    others = {"README.md", "config.json", "processor_config.json", "chat_template.jinja", "model.safetensors"}
    for name in ("tokenizer", "masked", "classifier"):
        assert pack(folders / name).files.keys() == code | others
    for file, source in (
        ("modeling_labram.py", r"config\.json"),
        ("layers_neurolm.py", r"modeling_labram\.py"),
        ("configuration_neurolm.py", r"\w+\.py"),
    ):
        (folders / "masked" / file).unlink()
        with pytest.raises(ValueError, match=rf"lacks {file}, the code that {source} names"):
            pack(folders / "masked")
        shutil.copy(REPOSITORY / "neurolm_hf" / file, folders / "masked")


def test_an_adapter_goes_with_the_name_of_its_model(folders):
    with pytest.raises(ValueError, match=r"an adapter of /.*pretrained, a folder of this machine: publish that"):
        pack(folders / "adapter")
    parcel = pack(folders / "adapter", CardOptions(base_model="tester/base"))
    assert parcel.files.keys() == ADAPTER
    assert json.loads(parcel.files["adapter_config.json"])["base_model_name_or_path"] == "tester/base"
    with pytest.raises(ValueError, match="is a whole model: a base model is given for an adapter"):
        pack(folders / "tuned", CardOptions(base_model="tester/base"))


def test_paths_and_people_stay_here(folders):
    everything = b"".join(
        one for name, one in pack(folders / "tuned").files.items() if isinstance(one, bytes) and name != "README.md"
    )
    card = pack(folders / "tuned").files["README.md"]
    for secret in (b"/home/anna", b"anna", str(folders).encode(), SUBJECTS[0].encode()):
        assert secret not in everything
        assert secret not in card
    config = json.loads(pack(folders / "tuned").files["config.json"])
    (data,) = config["provenance"]["data"]
    assert data["subject_count"] == 12
    assert config["provenance"]["started_from"]["model"] == "pretrained"
    named = json.loads(pack(folders / "tuned", subject_names=True).files["config.json"])
    assert named["provenance"]["data"][0]["subjects"] == SUBJECTS


def test_pickles_do_not_go(tuned):
    (tuned / "model.safetensors").rename(tuned / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"weights in optimizer\.pt, pytorch_model\.bin|weights in pytorch_model\.bin"
    ):
        pack(tuned)
    (tuned / "pytorch_model.bin").unlink()
    (tuned / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="has no weights: there is no safetensors file"):
        pack(tuned)


def test_damaged_weights_do_not_go(tuned):
    content = (tuned / "model.safetensors").read_bytes()
    (tuned / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        pack(tuned)
    (tuned / "model.safetensors").write_bytes(content)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tuned / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"lacks model-00002-of-00002\.safetensors, which model\.safetensors\.index"):
        pack(tuned)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("modeling_neurolm.py", r"lacks modeling_neurolm\.py, the code that config\.json names"),
        ("pipeline_neurolm.py", r"lacks pipeline_neurolm\.py, the code that config\.json names"),
        ("channels_neurolm.py", r"lacks channels_neurolm\.py, the code that \w+_neurolm\.py names"),
        ("processor_config.json", "has no processor"),
        ("config.json", r"neither a config\.json nor an adapter_config\.json"),
    ],
)
def test_what_would_not_open_does_not_go(tuned, file, message):
    (tuned / file).unlink()
    with pytest.raises(ValueError, match=message):
        pack(tuned)


def test_other_models_do_not_go(tuned, tmp_path):
    change_json(tuned / "config.json", model_type="gpt2")
    with pytest.raises(ValueError, match="holds a 'gpt2', which is no NeuroLM"):
        pack(tuned)
    (tuned / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json holds no JSON object"):
        pack(tuned)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        pack(tmp_path / "absent")


# --- how it goes -----------------------------------------------------------------------------------------------------


def test_one_commit_with_nothing_left_of_the_last(folders, hub, tmp_path):
    first = publish(pack(folders / "tuned"), "tester/model")
    repository = hub.repositories["model", "tester/model"]
    assert repository.private
    assert len(repository.commits) == 2  # the first is of the making of the repository
    assert repository.branches["main"] == first.oid
    assert hub.files("tester/model").keys() == WHOLE | {".gitattributes"}

    again = publish(pack(folders / "tuned"), "tester/model")
    assert (again.oid, len(repository.commits)) == (first.oid, 2)

    stale = dict(repository.commits[first.oid])
    stale |= {"model-00001-of-00002.safetensors": stale["config.json"], "my_notes.txt": stale["config.json"]}
    repository.commit("main", stale, "by hand")
    other = write_tuned(tmp_path / "other", folders / "pretrained", seed=2)
    publish(pack(other), "tester/model")
    assert hub.files("tester/model").keys() == WHOLE | {".gitattributes", "my_notes.txt"}
    assert hub.files("tester/model")["model.safetensors"] == (other / "model.safetensors").read_bytes()
    assert hub.files("tester/model", revision=first.oid)["config.json"] == pack(folders / "tuned").files["config.json"]


def test_a_branch(folders, hub):
    commit = publish(pack(folders / "tuned"), "tester/model", private=False, revision="second")
    repository = hub.repositories["model", "tester/model"]
    assert not repository.private
    assert repository.branches["second"] == commit.oid
    assert hub.files("tester/model", revision="main").keys() == {".gitattributes"}


def test_whose_card_stays(tuned, hub):
    publish(pack(tuned), "tester/model")
    repository = hub.repositories["model", "tester/model"]
    written = hub.files("tester/model")["README.md"]
    assert b'model="tester/model"' not in written  # no name was given

    # ours is replaced by ours
    publish(pack(tuned, CardOptions(name="tester/model")), "tester/model")
    written = hub.files("tester/model")["README.md"]
    assert b'model="tester/model"' in written

    # a person's in the repository stays
    edited = hub.stored(written.replace(b"# model\n", b"# A model of mine\n"), lfs=False)
    repository.commit("main", repository.commits[repository.branches["main"]] | {"README.md": edited}, "by hand")
    with pytest.warns(UserWarning, match="The card in tester/model was edited by hand and stays"):
        publish(pack(tuned, CardOptions(licence="mit")), "tester/model")
    assert b"# A model of mine" in hub.files("tester/model")["README.md"]

    # unless the folder's is a person's too
    (tuned / "README.md").write_text("# Mine\n")
    parcel = pack(tuned)
    assert parcel.edited_card
    publish(parcel, "tester/model")
    assert hub.files("tester/model")["README.md"] == b"# Mine\n"


def test_a_licence_is_not_lost_without_a_word(folders, tuned, hub):
    given = CardOptions(name="tester/model", licence="mit", datasets=["tester/set"])
    publish(pack(tuned, given), "tester/model")
    plain = pack(tuned, CardOptions(name="tester/model"))
    with pytest.raises(ValueError, match=r"has a licence, data sets, which the new .* --licence, --datasets again"):
        publish(plain, "tester/model")
    assert b"license: mit" in hub.files("tester/model")["README.md"]
    publish(pack(tuned, given), "tester/model")
    publish(plain, "tester/model", replace_card=True)
    assert b"license" not in hub.files("tester/model")["README.md"].split(b"---")[1]
    publish(plain, "tester/model")

    # nor by transformers' way
    publish(pack(tuned, given), "tester/model")
    with pytest.warns(UserWarning, match="The card in tester/model has lost a licence, data sets"):
        NeuroLMForCausalLM.from_pretrained(tuned).push_to_hub("tester/model")


def test_an_evaluation_is_not_lost_without_a_word(tuned, hub, tmp_path):
    results = write_results(tmp_path / "results", tuned)
    publish(pack(tuned, CardOptions(results=results)), "tester/model")
    with pytest.raises(ValueError, match=r"has an evaluation, which the new one would not have: .* --results again"):
        publish(pack(tuned), "tester/model")


def test_private_ones_are_not_shown_without_a_word(folders, hub, tmp_path):
    parcel = pack(folders / "tuned")
    publish(parcel, "tester/model")
    with pytest.raises(ValueError, match=r"tester/model is there already, and private: .* on its settings page"):
        publish(parcel, "tester/model", private=False)
    assert hub.repositories["model", "tester/model"].private
    prepared = write_prepared(tmp_path / "set", [("a_1.edf", "a", "train")])
    write_card(prepared)
    push_prepared(prepared, "tester/set")
    with pytest.raises(ValueError, match="tester/set is there already, and private"):
        push_prepared(prepared, "tester/set", private=False)


@pytest.mark.parametrize("kept", ["vq", "tuned"])
def test_push_to_hub_keeps_names_here(folders, hub, tmp_path, kept):
    """Of a model of either kind, and of its config alone; what is in memory and in folders stays as it was."""
    model = (NeuroLMVQModel if kept == "vq" else NeuroLMForCausalLM).from_pretrained(folders / kept)
    model.config.provenance = copy.deepcopy(STEP)
    model.push_to_hub("tester/model", tags=["mine"])
    model.config.push_to_hub("tester/config")
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="tester/saved")
    assert model.config.provenance == STEP
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["provenance"] == STEP
    for name in ("model", "config", "saved"):
        files = hub.files(f"tester/{name}")
        text = b"".join(content for file, content in files.items() if not file.endswith(".safetensors"))
        for secret in (b"anna", str(folders).encode(), SUBJECTS[0].encode()):
            assert secret not in text
        told = json.loads(files["config.json"])["provenance"]
        assert told["data"][0]["subject_count"] == 12
        assert told["started_from"]["model"] == "pretrained"
    for name in ("model", "saved"):
        card = hub.files(f"tester/{name}")["README.md"].decode()
        assert not is_edited(card)
        assert f'"tester/{name}"' in card
        assert "2,250 steps" in card
        assert ("- mine\n" in card) == (name == "model")


def test_labram_keeps_names_here_too(hub, tmp_path):
    """In the tokenizer within a model as well, with the package and without it."""
    folder = write_labram_folders(tmp_path / "labram") / "masked"
    config = json.loads((folder / "config.json").read_text())
    config["provenance"] = config["vq_config"]["provenance"] = STEP
    (folder / "config.json").write_text(json.dumps(config))
    LaBraMForMaskedEEGModeling.from_pretrained(folder).push_to_hub("tester/with")
    run_client(
        hub,
        f"""
        from transformers import AutoModelForPreTraining
        AutoModelForPreTraining.from_pretrained("{folder}", trust_remote_code=True).push_to_hub("tester/without")
        """,
        tmp_path / "client",
    )
    publish(pack(folder, CardOptions(name="tester/published")), "tester/published")
    for name in ("with", "without", "published"):
        files = hub.files(f"tester/{name}")
        text = b"".join(content for file, content in files.items() if not file.endswith(".safetensors"))
        for secret in (b"anna", str(tmp_path).encode(), SUBJECTS[0].encode()):
            assert secret not in text
        told = json.loads(files["config.json"])
        for part in (told, told["vq_config"]):
            assert part["provenance"]["data"][0]["subject_count"] == 12
            assert part["provenance"]["started_from"]["model"] == "pretrained"
    for name in ("with", "published"):
        assert b"A [LaBraM](https://arxiv.org/abs/2405.18765)" in hub.files(f"tester/{name}")["README.md"]


def test_push_to_hub_without_the_package_keeps_names_here(folders, hub, tmp_path):
    code = f"""
        from transformers import AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained("{folders}/tuned", trust_remote_code=True)
        model.push_to_hub("tester/model")
    """
    run_client(hub, code, tmp_path / "client")
    files = hub.files("tester/model")
    assert json.loads(files["config.json"])["provenance"]["data"][0]["subject_count"] == 12
    for secret in (b"anna", str(folders).encode(), SUBJECTS[0].encode()):
        assert secret not in b"".join(content for file, content in files.items() if not file.endswith(".safetensors"))
    assert b"This is the model card of a" in files["README.md"]


def test_push_to_hub_and_the_card_there(folders, tuned, hub):
    """Ours is replaced, a person's stays."""
    publish(pack(tuned, CardOptions(name="tester/model")), "tester/model")
    model = NeuroLMForCausalLM.from_pretrained(tuned)
    model.config.provenance = {**STEP, "steps": 77}
    model.push_to_hub("tester/model")
    assert b", 77 steps" in hub.files("tester/model")["README.md"]
    repository = hub.repositories["model", "tester/model"]
    mine = hub.stored(b"---\nlicense: mit\n---\n# Mine\n", lfs=False)
    repository.commit("main", repository.commits[repository.branches["main"]] | {"README.md": mine}, "by hand")
    model.push_to_hub("tester/model")
    assert hub.files("tester/model")["README.md"].endswith(b"# Mine\n")


def test_refusals_are_clear(folders, hub, monkeypatch):
    parcel = pack(folders / "tuned")
    with pytest.raises(OSError, match="rights to create a model under the namespace"):
        publish(parcel, "somebody/model")
    publish(parcel, "tester/open", private=False)
    with pytest.raises(ValueError, match=r"tester/open is there already, and public: give scripts/publish\.py --pub"):
        publish(parcel, "tester/open")
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(OSError, match=r"Invalid user token\. The token from HF_TOKEN environment variable is invalid"):
        publish(parcel, "tester/model")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(OSError, match="no token found"):
        publish(parcel, "tester/model")
    assert ("model", "tester/model") not in hub.repositories


def test_a_broken_connection_leaves_the_old_commit(folders, hub):
    parcel = pack(folders / "tuned")
    hub.break_commits = True
    with pytest.raises(ConnectionError, match=r"The upload to tester/model was interrupted: .*start the same command"):
        publish(parcel, "tester/model")
    assert hub.files("tester/model").keys() == {".gitattributes"}
    hub.break_commits = False
    hub.requests.clear()
    publish(parcel, "tester/model")
    assert hub.files("tester/model").keys() >= WHOLE
    assert not [path for method, path in hub.requests if method == "PUT"]  # the weights had arrived


@pytest.mark.slow
def test_a_killed_upload_leaves_the_old_commit(folders, hub, tmp_path):
    command = [sys.executable, str(REPOSITORY / "scripts" / "publish.py"), str(folders / "tuned"), "tester/model"]
    environment = client(hub, tmp_path) | {"PYTHONPATH": str(REPOSITORY)}
    hub.hold_uploads.set()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    assert hub.upload_waits.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.hold_uploads.clear()
    assert hub.files("tester/model").keys() == {".gitattributes"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f'pin it   revision="{hub.repositories["model", "tester/model"].branches["main"]}"' in done.stdout
    assert hub.files("tester/model").keys() >= WHOLE


def test_prepared_sets(hub, tmp_path):
    recordings = [("a_1.edf", "a", "train"), ("b_2.edf", "b", "test")]
    prepared = write_prepared(tmp_path / "set", recordings)
    with pytest.raises(ValueError, match="has no card"):
        push_prepared(prepared, "tester/set")
    write_card(prepared)
    for name in (".env", "data/train/.0.parquet.x.part"):
        (prepared / name).write_text("not to be sent")
    commit = push_prepared(prepared, "tester/set")
    assert commit.commit_url == f"{hub.endpoint}/datasets/tester/set/commit/{commit.oid}"
    assert hub.repositories["dataset", "tester/set"].private
    there = {"README.md", "preparation.json", "summary.json", "data/train/0.parquet", "data/test/1.parquet"}
    assert hub.files("tester/set", "dataset").keys() == there | {".gitattributes"}

    # the card's own code, and row by row
    code = re.search(r"```python\n(.*?)```", (prepared / "README.md").read_text(), re.DOTALL)[1]
    printed = run_client(
        hub,
        code.replace("FOLDER", "tester/set")
        + """
rows = list(load_dataset("tester/set", split="test", streaming=True))
print(dataset.num_rows, signal.shape, len(rows), rows[0]["subject"], dataset.features["label"].names)
""",
        tmp_path / "client",
    )
    assert printed.split("\n")[-2] == "2 (2, 800) 2 b ['No', 'Yes']"


# --- and how it comes back -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    first, _ = simulate_recordings(tmp_path_factory.mktemp("recordings"), subjects=1, seconds=40)
    return first


def code_of_card(hub, repo_id):
    """The example of a card in the Hub."""
    return re.search(r"```python\n(.*?)```", hub.files(repo_id)["README.md"].decode(), re.DOTALL)[1]


def test_cards_run_and_revisions_stay(folders, hub, tmp_path, recording):
    """Models and adapters open through transformers and peft alone; what is pinned is old, in weights and in code."""
    names = {name: CardOptions(name=f"tester/{name}") for name in ("vq", "pretrained", "tuned")}
    names["adapter"] = CardOptions(name="tester/adapter", base_model="tester/pretrained")
    commits = {name: publish(pack(folders / name, card), card.name) for name, card in names.items()}
    new = write_tuned(tmp_path / "new", folders / "pretrained", seed=2)
    with (new / "modeling_neurolm.py").open("a") as file:
        file.write("\nSECOND = True\n")
    publish(pack(new, names["tuned"]), "tester/tuned")

    examples = {name: code_of_card(hub, f"tester/{name}") for name in names}
    assert 'task="Workload"' in examples["tuned"]
    assert 'task="Workload"' in examples["adapter"]
    client_folder = tmp_path / "client"
    client_folder.mkdir()
    (client_folder / "recording.edf").symlink_to(recording)
    printed = run_client(
        hub,
        f"""
        import json
        answers, shapes = {{}}, {{}}
        for name, code in json.loads({json.dumps(examples)!r}).items():
            names = {{}}
            exec(code, names)
            if "answers" in names:
                answers[name] = names["answers"][0]["probabilities"]
            else:
                shapes[name] = list(names["codes"].shape)

        from peft import AutoPeftModelForCausalLM
        from transformers import AutoModelForCausalLM
        for revision in ("{commits["tuned"].oid}", "main"):
            model = AutoModelForCausalLM.from_pretrained("tester/tuned", revision=revision, trust_remote_code=True)
            code = vars(sys.modules[type(model).__module__])
            shapes["second" if "SECOND" in code else "first"] = model.lm_head.weight.flatten()[:3].tolist()
        assert type(model).__module__.startswith("transformers_modules.tester.tuned")
        adapted = AutoPeftModelForCausalLM.from_pretrained("tester/adapter", trust_remote_code=True)
        shapes["lora"] = sorted(adapted.peft_config)
        try:
            AutoModelForCausalLM.from_pretrained("tester/absent", trust_remote_code=True)
        except OSError as error:
            shapes["absent"] = str(error)
        print(json.dumps([answers, shapes]))
        """,
        client_folder,
    )
    answers, found = json.loads(printed.splitlines()[-1])
    assert answers.keys() == {"tuned", "adapter"}
    assert all(sum(one.values()) == pytest.approx(1, abs=1e-5) for one in answers.values())
    assert found["vq"] == found["pretrained"] == [1, 19 * 40]  # seconds of 19 channels
    assert found["lora"] == ["default"]
    assert "tester/absent is not a local folder and is not a valid model identifier" in found["absent"]
    for name, folder in (("first", folders / "tuned"), ("second", new)):
        expected = load_file(folder / "model.safetensors")["lm_head.weight"].flatten()[:3]
        assert torch.equal(torch.tensor(found[name]), expected)


@pytest.mark.slow
def test_push_to_hub_of_transformers_and_peft(folders, hub, tmp_path, recording):
    """Their own ways lead to repositories that open as well."""
    run_client(
        hub,
        f"""
        from peft import AutoPeftModelForCausalLM
        from neurolm_hf import NeuroLMForCausalLM, NeuroLMProcessor
        for name in ("pretrained", "tuned"):
            NeuroLMForCausalLM.from_pretrained("{folders}/" + name).push_to_hub("tester/" + name)
            NeuroLMProcessor.from_pretrained("{folders}/" + name).push_to_hub("tester/" + name)
        adapter = AutoPeftModelForCausalLM.from_pretrained("{folders}/adapter")
        adapter.peft_config["default"].base_model_name_or_path = "tester/pretrained"
        adapter.push_to_hub("tester/adapter")
        """,
        tmp_path / "pushing",
        alone=False,
    )
    assert hub.files("tester/tuned").keys() >= WHOLE
    weights = load(hub.files("tester/tuned")["model.safetensors"])
    assert torch.equal(weights["lm_head.weight"], load_file(folders / "tuned" / "model.safetensors")["lm_head.weight"])
    assert "adapter_model.safetensors" in hub.files("tester/adapter")
    run_client(
        hub,
        f"""
        from peft import AutoPeftModelForCausalLM
        from transformers import AutoProcessor, pipeline
        pipe = pipeline("eeg-question-answering", model="tester/tuned", trust_remote_code=True)
        (first, *_) = pipe("{recording}", task="Workload")
        adapted = AutoPeftModelForCausalLM.from_pretrained("tester/adapter", trust_remote_code=True)
        processor = AutoProcessor.from_pretrained("tester/pretrained", trust_remote_code=True)
        asked = dict(question="Question: Is it?", candidate_answers=["No", "Yes"])
        assert adapted.as_pipeline(processor)("{recording}", **asked)[0]["answer"] in ("No", "Yes")
        """,
        tmp_path / "opening",
    )

"""The card says what was run, shows hostile names as they are, invents nothing, and its code runs."""

import json
import re
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from labram_folders import write_labram_folders
from published_folders import STEP, SUBJECTS, change_json, write_folders
from safetensors.numpy import load_file
from test_evaluation_report import compared, evaluation, of_model, result

from neurolm_hf import NeuroLMForSequenceClassification, NeuroLMProcessor, NeuroLMVQForSequenceClassification
from neurolm_hf.evaluation_report import EvaluatedModel, Evaluation, read_evaluation
from neurolm_hf.model_card import CardOptions, is_edited, model_card, write_model_card
from neurolm_hf.model_folder import read_model_folder
from neurolm_hf.simulation import simulate_recordings
from neurolm_hf.starting_models import describe_source


HOSTILE = 'a|b `c` *d*\n\n# e\n---\n<b>f</b> "g": [h](i) \\'
CLASSES = {"id2label": {0: "No", 1: "Yes"}, "label2id": {"No": 0, "Yes": 1}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def tuned(folders, tmp_path):
    return shutil.copytree(folders / "tuned", tmp_path / "tuned")


def head_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def section(card, title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)[1]


def rows_of(text):
    """Cells of every row of its tables, as GitHub splits them."""
    lines = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in re.findall(r"((?:\\.|[^|\\])*)\|", line)[1:]] for line in lines]


def write_results(folder, model, *results):
    """An evaluation of a model, as scripts/evaluate_tasks.py leaves it."""
    models = {"tiny": EvaluatedModel("answers", describe_source(str(model)))}
    Evaluation(models, False, list(results) or [result()]).write(folder)
    return folder


def test_what_was_run_is_told(tuned):
    change_json(tuned / "settings.json", learning_rate=5e-4, total_train_batch_size=32, channel_dropout=None)
    change_json(
        tuned / "training.json",
        validation={"eval_loss": 0.5123456, "eval_Workload_accuracy": 0.75},
        best_checkpoint="checkpoint-4",
        skipped_rows=["a", "b"],
    )
    card = model_card(tuned)
    assert "that answers questions about EEG." in card
    tasks = rows_of(card.split("## Use")[0])
    assert tasks[1] == ["Workload", "Question: Is this EEG segment of high workload?", "No, Yes"]
    training = section(card, "Training")
    assert "band-passed 0.1–75 Hz, notched at 50 Hz, resampled to 200 Hz, divided by 100 µV" in training
    assert (
        "By instruction_tune.py of neurolm_hf 0.1.0, torch 2.9.1, by the recipe instruction-lora.yaml, 2,250 steps "
        "(2.5 epochs), from pretrained." in training
    )
    head, told, *validation = rows_of(training)
    assert dict(zip(head, told, strict=True)) == {
        "data": "workload",
        "task": "Workload",
        "subjects": "12",
        "hours": "3.25",
        "windows": "2,712",
        "of seconds": "4",
        "mains": "50 Hz",
        "licence of the recordings": "odc-by",
        "fingerprint": "ffffffffffff",
    }
    assert "Channels: FP1, FP2." in training
    assert "Settings of the last training: learning rate 0.0005, windows a step 32." in training
    assert "2 windows could not be used" in training
    assert "by which the checkpoint was chosen" in training
    assert validation[1:] == [["Workload_accuracy", "0.75"], ["loss", "0.5123"]]
    assert head_of(card) == {
        "library_name": "transformers",
        "pipeline_tag": "other",
        "tags": ["eeg", "neurolm", "workload"],
    }
    assert "No evaluation of these weights is at hand" in section(card, "Evaluation")
    assert "No licence was given" in section(card, "Licence")
    assert "no medical device" in section(card, "Limits")
    assert "@inproceedings{jiang2025neurolm" in section(card, "Citation")
    for secret in ("/home/anna", *SUBJECTS, str(tuned)):
        assert secret not in card


def test_what_is_not_known_is_left_out(tuned):
    before = {
        "made_by": "pretrain.py of neurolm_hf 0.0.9",
        "data": [{"task": "Corpus"}],
        "started_from": {"vq": "me/vq"},
    }
    step = {**STEP, "versions": {}, "recipe": None, "steps": None, "data": [], "started_from": {"provenance": before}}
    change_json(tuned / "config.json", provenance=step)
    training = section(model_card(tuned), "Training")
    first, second = training.split("### ")[1:]
    assert "By pretrain.py of neurolm_hf 0.0.9, from me/vq." in first
    assert rows_of(first) == [["task"], ["Corpus"]]
    assert second == "Instruction tuning\n\nBy instruction_tune.py of neurolm_hf 0.1.0.\n\n"
    for word in ("hours", "subjects", "Channels", "None", "Settings", "mains"):
        assert word not in training

    change_json(tuned / "config.json", provenance=before | {"started_from": {"vq": None, "text_model": None}})
    assert "neurolm_hf 0.0.9, from random weights." in model_card(tuned)
    change_json(tuned / "config.json", provenance=None)
    card = model_card(tuned)
    assert "Nothing is known here of how these weights were trained." in section(card, "Training")
    assert "From whom it has learnt is not known here" in section(card, "Limits")


def test_simulated_recordings_are_told_ever_after(tuned):
    assert "simulated" not in model_card(tuned)
    change_json(tuned / "config.json", provenance=STEP | {"recordings": "mine", "stage": "Demo"})
    card = model_card(tuned)
    assert "### Demo\n" in card
    assert "Recordings: mine." in card
    assert "simulated" not in card
    before = STEP | {"recordings": "simulated"}
    change_json(tuned / "config.json", provenance=STEP | {"started_from": {"model": "demo", "provenance": before}})
    card = model_card(tuned)
    assert section(card, "Training").count("Recordings: simulated.") == 1
    assert "recordings that it has learnt from are simulated" in section(card, "Limits")


def test_weights_are_counted(tuned):
    count = sum(tensor.size for tensor in load_file(tuned / "model.safetensors").values())
    assert (
        f"It has {count:,} weights: an EEG encoder of 2 layers, 32 wide, 32 codes of 8 numbers, a language"
        in model_card(tuned)
    )
    (tuned / "model.safetensors").unlink()
    assert "Its weights are not in this folder: an EEG encoder" in model_card(tuned)


def test_the_trainings_of_all_parts_in_their_order(tuned):
    config = json.loads((tuned / "config.json").read_text())
    vq, pretraining = ({**STEP, "made_by": f"{name}.py of us", "data": []} for name in ("train_vq", "pretrain"))
    config["eeg_config"]["provenance"] = vq
    config["provenance"] = STEP | {"started_from": {"model": "b", "provenance": pretraining}}
    (tuned / "config.json").write_text(json.dumps(config))
    assert [step["made_by"].split(".")[0] for step in read_model_folder(tuned).history()] == [
        "train_vq",
        "pretrain",
        "instruction_tune",
    ]
    titles = re.findall(r"^### (.*)", section(model_card(tuned), "Training"), re.MULTILINE)
    assert titles == ["Neural tokenizer", "Pre-training", "Instruction tuning"]


def test_converted_weights_name_their_files(tuned):
    files = {
        "neurolm": {"file": "NeuroLM-B.pt", "sha256": "a" * 64, "licence": "MIT"},
        "vq": {"repository": "someone/VQ", "sha256": "b" * 64},
    }
    for provenance in (files, STEP | {"started_from": {"model": "b", "provenance": files}}):
        change_json(tuned / "config.json", provenance=provenance)
        training = section(model_card(tuned), "Training")
        assert f"converted from NeuroLM-B.pt (sha256 `{'a' * 64}`, licence MIT)" in training
        assert f"converted from someone/VQ (sha256 `{'b' * 64}`)" in training


def test_hostile_names_break_nothing(tuned):
    data = {name: HOSTILE for name in ("folder", "task", "fingerprint", "licence")}
    step = STEP | {"recipe": HOSTILE, "made_by": HOSTILE, "data": [{**STEP["data"][0], **data, "channels": [HOSTILE]}]}
    task = {"name": HOSTILE, "question": HOSTILE, "answers": [HOSTILE, "Yes"]}
    change_json(tuned / "config.json", provenance=step, tasks=[task])
    card = model_card(tuned, CardOptions(licence=HOSTILE, results=None))
    head = head_of(card)
    assert head["license"] == "other"
    assert head["tags"][-1] == " ".join(HOSTILE.split()).lower()
    assert ModelCard(card).data.tags == head["tags"]
    titles = re.findall(r"^#+ (.*)", card, re.MULTILINE)
    assert titles == ["tuned", "Use", "Training", "Training", "Evaluation", "Limits", "Licence", "Citation"]
    assert {len(row) for row in rows_of(card.split("## Use")[0])} == {3}
    assert len({len(row) for row in rows_of(section(card, "Training"))}) == 1
    assert "<b>" not in card.split("\n---\n", 1)[1].replace(json.dumps(HOSTILE), "")
    (code, _) = re.findall(r"```\w+\n(.*?)```", card, re.DOTALL)
    compile(code, "card", "exec")
    assert json.dumps(HOSTILE) in code


def test_figures_are_those_of_the_evaluation(tuned, tmp_path):
    model = of_model(doubts=["The model was trained on 2 of these subjects."])
    given = result(models={"tiny": model}, notes=["16 of 36 subjects."])
    results = write_results(tmp_path / "results", tuned, given)
    card = model_card(tuned, CardOptions(name="me/tiny", results=results))
    told = section(card, "Evaluation")
    assert "### Workload, test: 1,340 windows of 2 subjects" in told
    head, model, baseline, difference, chance = rows_of(told)
    assert head == ["", "accuracy", "AUROC"]
    assert model == ["tiny", "0.625 (0.50 to 0.75)", "0.700 (0.60 to 0.80)"]
    assert (baseline[0], difference[0], chance[0]) == (
        "log band power, logistic regression",
        "difference: tiny less baseline",
        "chance",
    )
    assert "95% intervals, drawing whole subjects" in told
    assert "s\\|1" not in card  # nothing about single subjects
    assert "- 16 of 36 subjects." in told
    limits = section(card, "Limits")
    assert "About its evaluation: The model was trained on 2 of these subjects." in limits
    assert "16 of 36" not in limits
    # the card's name, whatever the folder was called in which it was evaluated
    assert rows_of(section(model_card(tuned, CardOptions("me/workload", results)), "Evaluation"))[1][0] == "workload"
    ((name, metrics),) = [model_index_to_eval_results(head_of(card)["model-index"])]
    assert name == "tiny"
    assert {one.metric_type: one.metric_value for one in metrics} == {"accuracy": 0.625, "roc_auc": 0.7}


def test_figures_of_other_weights_are_refused(tuned, folders, tmp_path):
    results = write_results(tmp_path / "results", folders / "pretrained")
    with pytest.raises(ValueError, match=r"an evaluation of other weights \(.*pretrained\) than those in .*tuned"):
        model_card(tuned, CardOptions(results=results))
    with pytest.raises(ValueError, match=r"holds no results: scripts/evaluate_tasks\.py writes"):
        model_card(tuned, CardOptions(results=tmp_path))
    (tmp_path / "results.json").write_text('{"name": "x"}')
    with pytest.raises(ValueError, match=r"results\.json is no evaluation of this package: KeyError\('results'\)"):
        model_card(tuned, CardOptions(results=tmp_path))


def test_an_evaluation_reads_back(tmp_path):
    plain = result(
        baseline=None, baseline_by_subject=None, models={"tiny": of_model(less_baseline=None, written=None)}
    )
    for made in (evaluation(), evaluation(plain, result(), as_reference=True), compared()):
        made.write(tmp_path)
        assert read_evaluation(tmp_path) == made
        assert read_evaluation(tmp_path).markdown() == made.markdown()


def test_a_classifier_has_its_own_figures_out_of_a_comparison(classifiers, tmp_path):
    """Whichever place it had in the evaluation, by its weights."""
    made = compared()
    sources = {"tiny": classifiers / "tuned", "he|ad": classifiers / "of-vq"}
    models = {
        name: EvaluatedModel(made.models[name].kind, describe_source(str(folder))) for name, folder in sources.items()
    }
    Evaluation(models, False, made.results).write(tmp_path)
    card = model_card(classifiers / "of-vq", CardOptions(name="me/mine", results=tmp_path))
    told = section(card, "Evaluation")
    assert [row[0] for row in rows_of(told)] == [
        *("", "mine", "log band power, logistic regression", "difference: mine less baseline", "chance"),
    ]
    assert rows_of(told)[1][1] == "0.250"
    assert "probabilities that a classifier gives its classes" in told
    assert "tiny" not in card
    assert "About its evaluation: The model was trained on 2 of these subjects." in section(card, "Limits")
    (index,) = head_of(card)["model-index"]
    assert (index["name"], index["results"][0]["task"]["type"]) == ("mine", "eeg-classification")
    # beside it, the language model has its own
    told = section(model_card(classifiers / "tuned", CardOptions(name="me/words", results=tmp_path)), "Evaluation")
    assert rows_of(told)[1][:2] == ["words", "0.625 (0.50 to 0.75)"]
    with pytest.raises(ValueError, match=r"an evaluation of other weights \(.*tuned, .*of-vq\) than those in .*vq"):
        model_card(classifiers / "vq", CardOptions(results=tmp_path))


def test_what_the_publisher_says(tuned, folders):
    card = model_card(tuned, CardOptions(name="me/mine", licence="cc-by-4.0", datasets=["me/workload"]))
    head = head_of(card)
    assert (head["license"], head["datasets"]) == ("cc-by-4.0", ["me/workload"])
    assert "Of the weights: cc-by-4.0." in card
    assert "# mine\n" in card
    assert 'model="me/mine"' in card
    assert "FOLDER" not in card

    head = head_of(model_card(folders / "adapter"))
    assert (head["library_name"], "base_model" in head, "lora" in head["tags"]) == ("peft", False, True)
    card = model_card(folders / "adapter", CardOptions(base_model="me/base"))
    assert head_of(card)["base_model"] == "me/base"
    assert "An adapter (LORA) of `me/base`, a [NeuroLM]" in card
    assert "An adapter (LORA) of a [NeuroLM](https://arxiv.org/abs/2409.00101) that answers" in model_card(
        folders / "adapter"
    )
    assert str(folders) not in card


# --- LaBraM ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labram(tmp_path_factory):
    return write_labram_folders(tmp_path_factory.mktemp("labram"))


def test_cards_of_labram_say_what_it_is(labram):
    for name, said, parts in (
        ("tokenizer", "A neural tokenizer of [LaBraM](https://arxiv.org/abs/2405.18765) that turns every second", 2),
        ("masked", "that turns EEG into features and predicts the codes of patches that are masked. It was never", 3),
        ("classifier", "A [LaBraM](https://arxiv.org/abs/2405.18765) that sorts windows of EEG into classes.", 3),
    ):
        card = model_card(labram / name)
        count = sum(tensor.size for tensor in load_file(labram / name / "model.safetensors").values())
        codes = "" if name == "classifier" else ", 32 codes of 8 numbers"
        assert said in card
        assert f"It has {count:,} weights: an EEG encoder of {parts} layers, 100 wide{codes}.\n" in card
        assert head_of(card)["tags"] == ["eeg", "labram"]
        assert "jiang2024labram" in section(card, "Citation")
        assert ("shares among its answers" in section(card, "Limits")) == (name == "classifier")
        for wrong in ("NeuroLM", "language model", "question"):
            assert wrong not in card.replace("neurolm_hf", ""), wrong


def test_the_trainings_of_a_labram_in_their_order(labram, tmp_path):
    folder = shutil.copytree(labram / "masked", tmp_path / "labram")
    config = json.loads((folder / "config.json").read_text())
    vq, masked = ({**STEP, "made_by": f"{name}.py of us"} for name in ("train_vq", "pretrain_masked"))
    masked["started_from"] = {"model": None, "vq": "/home/anna/runs/labram-vq", "provenance": None}
    config["vq_config"]["provenance"] = vq
    tuned = STEP | {"made_by": "finetune_classifier.py of us", "started_from": {"model": "b", "provenance": masked}}
    for provenance, titles in ((masked, []), (tuned, ["Classifier"])):
        config["provenance"] = provenance
        (folder / "config.json").write_text(json.dumps(config))
        training = section(model_card(folder), "Training")
        assert re.findall(r"^### (.*)", training, re.MULTILINE) == ["Neural tokenizer", "Masked modelling", *titles]
        assert "from random weights, to the codes of labram-vq." in training
        assert "anna" not in training
    # what was converted
    files = {"labram": {"file": "labram-base.pth", "sha256": "a" * 64}, "vq": {"file": "v.pth", "sha256": "b" * 64}}
    files["untrained_channels"] = ["NZ", "I2"]
    assert "No training has moved" not in model_card(folder)
    config |= {"provenance": files, "vq_config": config["vq_config"] | {"provenance": files["vq"]}}
    (folder / "config.json").write_text(json.dumps(config))
    training = section(model_card(folder), "Training")
    assert training.count("Weights were converted from") == 2
    assert f"labram-base.pth (sha256 `{'a' * 64}`)" in training
    assert "- No training has moved its rows of these channels: NZ, I2.\n" in section(model_card(folder), "Limits")


@pytest.mark.parametrize(
    ("problem_type", "what", "found"),
    [
        ("multi_label_classification", "tells which labels windows of EEG have. ", "Labels: No, Yes."),
        ("regression", "tells values from windows of EEG. ", "Values: No, Yes."),
    ],
)
def test_heads_of_other_problems(labram, tmp_path, problem_type, what, found):
    folder = shutil.copytree(labram / "classifier", tmp_path / "labram")
    change_json(folder / "config.json", problem_type=problem_type)
    card = model_card(folder)
    assert what in card
    assert found in card
    assert "softmax" not in card
    assert ("sigmoid()" in card) == (found[0] == "L")
    assert "shares among its answers" not in card


# --- whose card it is ------------------------------------------------------------------------------------------------


def test_an_edited_card_stays(tuned):
    write_model_card(tuned)
    file = tuned / "README.md"
    written = file.read_text()
    assert written == model_card(tuned)
    change_json(tuned / "config.json", provenance=None)
    write_model_card(tuned)
    assert file.read_text() == model_card(tuned) != written
    for edited in (
        written + "More.\n",
        written.replace("tags:", "license: mit\ntags:"),
        "# Mine\n",
        "---\na: b\n---\nx",
    ):
        assert is_edited(edited)
        file.write_text(edited)
        write_model_card(tuned)
        assert file.read_text() == edited


def test_templates_are_nobodys(folders):
    of_peft = (folders / "adapter" / "README.md").read_text()
    assert "Model Card for Model ID" in of_peft
    assert not is_edited(of_peft)
    assert is_edited(of_peft.replace("[More Information Needed]", "Anna", 1))
    assert not is_edited("")


# --- its code --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifiers(folders):
    """Of a language model, after its question, and of a neural tokenizer; and an adapter that PEFT alone has saved."""
    pretrained = folders / "pretrained"
    NeuroLMForSequenceClassification.from_pretrained(pretrained, **CLASSES).save_pretrained(folders / "classifier")
    NeuroLMProcessor.from_pretrained(pretrained).save_pretrained(folders / "classifier")
    change_json(folders / "classifier" / "config.json", classifier_prompts=["[SEP]Question: Is it? Answer:"])
    NeuroLMVQForSequenceClassification.from_pretrained(folders / "vq", **CLASSES).save_pretrained(folders / "of-vq")
    NeuroLMProcessor.from_pretrained(folders / "vq").save_pretrained(folders / "of-vq")
    write_labram_folders(folders / "labram")
    (folders / "bare").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(folders / "adapter" / name, folders / "bare" / name)
    return folders


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("vq", "tokenizer", "codes"),
        ("pretrained", "features", "codes"),
        ("tuned", "answers", "answers"),
        ("adapter", "answers", "answers"),
        ("bare", "answers", "answers"),
        ("classifier", "classifier", "probabilities"),
        ("of-vq", "classifier", "probabilities"),
        ("labram/tokenizer", "tokenizer", "codes"),
        ("labram/masked", "features", "features"),
        ("labram/classifier", "classifier", "probabilities"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is shorter than the")
def test_the_code_on_the_card_runs(classifiers, name, kind, found, tmp_path, monkeypatch, caplog):
    assert read_model_folder(classifiers / name).kind == kind
    card = model_card(classifiers / name)
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    (tmp_path / "recording.edf").symlink_to(simulate_recordings(tmp_path, subjects=1, seconds=8)[0])
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(
        code.replace("FOLDER", str(classifiers / name)).replace('"BASE"', json.dumps(str(classifiers / "pretrained"))),
        names,
    )
    values = names[found]
    if found == "answers":
        assert sum(values[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    elif found == "codes":
        assert values.shape == (1, 19 * 8)
    elif found == "features":
        assert values.shape == (1, 19 * 8, 100)
    else:
        assert values.sum(dim=1).tolist() == pytest.approx([1] * len(values), abs=1e-5)
        assert "Classes: No, Yes." in card
        assert ("Is it?" in code) == (name == "classifier")

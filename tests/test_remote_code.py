"""A saved folder is all one needs: it opens through the Auto classes, offline, where this package is not installed.

The processes below forbid `import neurolm_hf`, have a fresh cache of modules and no Hub.
"""

import itertools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from golden import golden, language_model, metadata, recording, tokenizer_model
from labram_folders import LABRAM, write_labram_folders
from safetensors.torch import load_file, save_file
from tiny import EEG
from tiny_labram import labram_batch, labram_vq, masked_model

from neurolm_hf import EEGFeatureExtractor, NeuroLMProcessor, NeuroLMVQForPreTraining, NeuroLMVQModel
from neurolm_hf.processing_neurolm import train_text_tokenizer


REPOSITORY = Path(__file__).parents[1]
CODE = {"configuration_neurolm.py", "layers_neurolm.py", "modeling_neurolm.py", "pipeline_neurolm.py"}
LABRAM_CODE = {"configuration_labram.py", "configuration_neurolm.py", "layers_neurolm.py", "modeling_labram.py"}
PROCESSING = {
    "checks_neurolm.py",
    "filtering_neurolm.py",
    "processing_neurolm.py",
    "channels_neurolm.py",
    "reading_neurolm.py",
    "processor_config.json",
    "chat_template.jinja",
}
SAMPLE = 1
ARGUMENTS = {
    "text": "[SEP]Question: Is it? Answer:",
    "ch_names": metadata()["recordings"][SAMPLE]["ch_names"],
    "sampling_rate": 200,
    "unit": "uV",
}

ALONE = """
    import json, sys
    sys.modules["neurolm_hf"] = None
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import (
        AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForCausalLM, AutoModelForPreTraining, AutoProcessor
    )
    folder, inputs = sys.argv[1], load_file(sys.argv[2])
    trust = {"trust_remote_code": True}
"""


def run(code, *arguments, cache, alone=True):
    """Code in a process of its own; returns what it printed and what it complained of."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "HF_MODULES_CACHE": str(cache / "modules")}
    # where DeepSpeed is installed, it would tell stdout that it found no GPU
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": "" if alone else str(REPOSITORY)}
    code = textwrap.dedent(ALONE if alone else "") + textwrap.dedent(code)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cache, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def assert_no_weights_missed(complaints):
    """transformers tells of keys that it misses or does not expect."""
    for word in ("MISSING", "UNEXPECTED", "newly initialized", "not used", "mismatch"):
        assert word not in complaints, complaints


@pytest.fixture(scope="module")
def text_tokenizer():
    texts = [path.read_text() for path in (REPOSITORY / "neurolm_hf").glob("*.py")]
    return train_text_tokenizer(texts, vocab_size=512)


@pytest.fixture(scope="module")
def model(text_tokenizer):
    return language_model("large", text_tokenizer=text_tokenizer)


@pytest.fixture(scope="module")
def processor(text_tokenizer):
    # the golden recordings are filtered already
    return NeuroLMProcessor(EEGFeatureExtractor(do_filter=False, do_notch=False), text_tokenizer)


@pytest.fixture(scope="module")
def inputs(processor):
    """A golden recording and a question."""
    return dict(processor(eeg=golden("inputs")[f"raw_uv.{SAMPLE}"].numpy(), return_tensors="pt", **ARGUMENTS))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model, processor, inputs):
    """(folder of model and processor, file of inputs) as a user would have them."""
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    file = tmp_path_factory.mktemp("inputs") / "inputs.safetensors"
    save_file(inputs, file)
    return folder, file


def test_what_is_in_the_folder(saved):
    files = {path.name for path in saved[0].iterdir()}
    assert files == CODE | PROCESSING | {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in [name for name in CODE | PROCESSING if name.endswith(".py")]:
        assert (saved[0] / name).read_bytes() == (REPOSITORY / "neurolm_hf" / name).read_bytes()


def test_a_folder_opens_without_the_package(saved, model, inputs, tmp_path):
    raw = tmp_path / "raw.safetensors"
    save_file({"raw": golden("inputs")[f"raw_uv.{SAMPLE}"]}, raw)
    printed, complaints = run(
        """
        config = AutoConfig.from_pretrained(folder, **trust)
        model = AutoModelForCausalLM.from_pretrained(folder, **trust)
        base = AutoModel.from_pretrained(folder, **trust)
        processor = AutoProcessor.from_pretrained(folder, **trust)
        extractor = AutoFeatureExtractor.from_pretrained(folder, **trust)
        for one in (config, model, base, processor, extractor):
            print(type(one).__name__, type(one).__module__.split(".")[0])
        assert not model.training and not any(p.requires_grad for p in model.model.eeg_encoder.parameters())
        with torch.no_grad():
            logits = model(**inputs).logits
            hidden = base(**inputs).last_hidden_state
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)

        # all the way from the recording
        raw, arguments = load_file(sys.argv[3])["raw"].numpy(), json.loads(sys.argv[4])
        made = processor(eeg=raw, return_tensors="pt", **arguments)
        assert made.keys() == inputs.keys() and all(torch.equal(made[name], inputs[name]) for name in inputs)
        del arguments["text"]
        codes = processor.tokenize_eeg(raw, model, **arguments)
        save_file({"logits": logits, "hidden": hidden, "tokens": tokens, "codes": codes}, sys.argv[5])
        model.save_pretrained(sys.argv[6])
        processor.save_pretrained(sys.argv[6])
        """,
        *saved,
        raw,
        json.dumps(ARGUMENTS),
        tmp_path / "outputs.safetensors",
        tmp_path / "again",
        cache=tmp_path,
    )
    assert printed.split() == [
        *("NeuroLMConfig", "transformers_modules", "NeuroLMForCausalLM", "transformers_modules"),
        *("NeuroLMModel", "transformers_modules", "NeuroLMProcessor", "transformers_modules"),
        *("EEGFeatureExtractor", "transformers_modules"),
    ]
    # AutoModel leaves the two heads out, and says so; nothing else is left out or made up
    told = {name for name in model.state_dict() if name in complaints}
    assert told <= {"lm_head.weight", "code_head.weight"}
    assert "MISSING" not in complaints
    theirs = load_file(tmp_path / "outputs.safetensors")
    with torch.no_grad():
        assert torch.equal(theirs["logits"], model(**inputs).logits)
        assert torch.equal(theirs["hidden"], model.model(**inputs).last_hidden_state)
    assert torch.equal(theirs["tokens"], model.generate(**inputs, max_new_tokens=6, do_sample=False))
    assert torch.equal(theirs["codes"][0], golden("neurolm_large_outputs")[f"single.{SAMPLE}.codes"])
    assert_saved_again(saved[0], tmp_path / "again")

    # what was saved there opens again, still without the package
    _, complaints = run(
        """
        model = AutoModelForCausalLM.from_pretrained(folder, **trust)
        AutoProcessor.from_pretrained(folder, **trust)
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, load_file(sys.argv[3])["logits"])
        """,
        tmp_path / "again",
        saved[1],
        tmp_path / "outputs.safetensors",
        cache=tmp_path,
    )
    assert_no_weights_missed(complaints)


def assert_saved_again(first, second):
    """The same files, the same weights, the same configuration."""
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}
    for name in CODE | {"processing_neurolm.py", "model.safetensors", "tokenizer.json"}:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    for name in ("config.json", "processor_config.json"):
        one, other = (json.loads((folder / name).read_text()) for folder in (first, second))
        for part, config in itertools.product(("eeg_config", "text_config"), (one, other)):
            # loading writes the type of the weights into the parts as well
            config.get(part, {}).pop("dtype", None)
        assert one == other, name


def test_bfloat16_keeps_the_codebook(saved, model, tmp_path):
    run(
        """
        for auto_class in (AutoModelForCausalLM, AutoModel):
            model = auto_class.from_pretrained(folder, dtype=torch.bfloat16, **trust)
            full = {name for name, t in model.state_dict().items() if t.dtype == torch.float32}
            assert full and all(".quantizer." in name or ".to_codebook." in name for name in full), full
            assert model.dtype == torch.bfloat16
            base = getattr(model, "model", model)
            assert base.language_model.wte.weight.dtype == torch.bfloat16
            base.eeg_encoder.quantizer.codebook.numpy().tofile(sys.argv[3])
            inputs["input_values"] = inputs["input_values"].bfloat16()
            with torch.no_grad():
                outputs = model(**inputs)
            values = outputs.last_hidden_state if model is base else outputs.logits
            assert values.dtype == torch.bfloat16 and values.isfinite().all()
        """,
        *saved,
        tmp_path / "codebook",
        cache=tmp_path,
    )
    codebook = model.model.eeg_encoder.quantizer.codebook
    assert (tmp_path / "codebook").read_bytes() == codebook.numpy().tobytes()


def test_the_pipeline_comes_with_the_folder(saved, model, processor, tmp_path):
    microvolts = golden("inputs")[f"raw_uv.{SAMPLE}"]
    save_file({"raw": microvolts}, tmp_path / "raw.safetensors")
    recording = {name: ARGUMENTS[name] for name in ("ch_names", "sampling_rate", "unit")}
    asked = {"question": "Is it?", "candidate_answers": ["No", "Yes"]}
    printed, complaints = run(
        """
        from transformers import pipeline

        pipe = pipeline("eeg-question-answering", model=folder, trust_remote_code=True, device="cpu")
        raw = load_file(sys.argv[3])["raw"].numpy()
        answers = pipe([{"eeg": raw, **json.loads(sys.argv[4])}] * 2, batch_size=2, **json.loads(sys.argv[5]))
        yes = lambda answers: answers[0]["probabilities"]["Yes"]
        assert abs(yes(answers[0]) - yes(answers[1])) < 1e-6
        assert type(pipe).__module__.startswith("transformers_modules")
        print(json.dumps(answers[0]))
        pipe.model.save_pretrained(sys.argv[6])
        pipe.processor.save_pretrained(sys.argv[6])
        again = pipeline("eeg-question-answering", model=sys.argv[6], trust_remote_code=True, device="cpu")
        alone = again({"eeg": raw, **json.loads(sys.argv[4])}, **json.loads(sys.argv[5]))
        assert abs(yes(alone) - yes(answers[0])) < 1e-6
        """,
        *saved,
        tmp_path / "raw.safetensors",
        json.dumps(recording),
        json.dumps(asked),
        tmp_path / "again",
        cache=tmp_path,
    )
    assert_no_weights_missed(complaints)
    (window,) = model.as_pipeline(processor, device="cpu")({"eeg": microvolts.numpy(), **recording}, **asked)
    (found,) = json.loads(printed)
    assert found["answer"] == window["answer"]
    assert found["probabilities"] == pytest.approx(window["probabilities"], abs=1e-6)
    assert (tmp_path / "again" / "pipeline_neurolm.py").is_file()


@pytest.mark.parametrize("saved_class", [NeuroLMVQModel, NeuroLMVQForPreTraining])
def test_the_tokenizer_alone_is_such_a_folder(saved_class, tmp_path, saved):
    whole = tokenizer_model()
    folder = tmp_path / "tokenizer"
    (whole if saved_class is NeuroLMVQForPreTraining else whole.vq).save_pretrained(folder)
    NeuroLMProcessor(EEGFeatureExtractor()).save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == CODE | PROCESSING | {"config.json", "model.safetensors"}
    printed, complaints = run(
        """
        config = AutoConfig.from_pretrained(folder, **trust)
        model = AutoModel.from_pretrained(folder, **trust)
        extractor = AutoFeatureExtractor.from_pretrained(folder, **trust)
        processor = AutoProcessor.from_pretrained(folder, **trust)
        print(type(config).__name__, type(model).__name__, type(extractor).__name__, processor.tokenizer)
        with torch.no_grad():
            outputs = model(**{name: values for name, values in inputs.items() if name in sys.argv[5:]})
        save_file({"codes": outputs.codes, "raw": outputs.raw, **model.state_dict()}, sys.argv[3])
        model.save_pretrained(sys.argv[4])
        AutoModel.from_pretrained(sys.argv[4], **trust)
        half = AutoModel.from_pretrained(folder, dtype=torch.bfloat16, **trust)
        assert half.encoder.quantizer.codebook.dtype == torch.float32
        assert half.raw_decoder.head[0].weight.dtype == torch.bfloat16
        """,
        folder,
        saved[1],
        tmp_path / "outputs.safetensors",
        tmp_path / "again",
        *recording(SAMPLE),
        cache=tmp_path,
    )
    assert printed.split() == ["NeuroLMVQConfig", "NeuroLMVQModel", "EEGFeatureExtractor", "None"]
    told = {name for name in whole.state_dict() if name in complaints}
    assert told <= {name for name in whole.state_dict() if not name.startswith("vq.")}
    assert "MISSING" not in complaints
    theirs = load_file(tmp_path / "outputs.safetensors")
    for name, tensor in whole.vq.state_dict().items():
        assert torch.equal(theirs[name], tensor), name
    with torch.no_grad():
        assert torch.equal(theirs["raw"], whole.vq(**recording(SAMPLE)).raw)
    assert torch.equal(theirs["codes"][0], golden("tokenizer_single_outputs")[f"{SAMPLE}.codes"])


def test_the_adversary_opens_without_the_package(tmp_path, saved):
    whole = tokenizer_model()
    whole.save_pretrained(tmp_path / "tokenizer")
    _, complaints = run(
        """
        model = AutoModelForPreTraining.from_pretrained(folder, **trust)
        assert type(model).__name__ == "NeuroLMVQForPreTraining"
        assert not model.text_embedding.weight.requires_grad
        save_file(model.state_dict(), sys.argv[3])
        """,
        tmp_path / "tokenizer",
        saved[1],
        tmp_path / "outputs.safetensors",
        cache=tmp_path,
    )
    assert_no_weights_missed(complaints)
    theirs = load_file(tmp_path / "outputs.safetensors")
    assert theirs.keys() == whole.state_dict().keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in whole.state_dict().items())


# --- LaBraM ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labram_folders(tmp_path_factory):
    # the golden recordings are filtered already
    return write_labram_folders(tmp_path_factory.mktemp("labram"), do_filter=False, do_notch=False)


def test_what_is_in_a_folder_of_labram(labram_folders):
    for name in LABRAM:
        files = {path.name for path in (labram_folders / name).iterdir()}
        assert files == LABRAM_CODE | PROCESSING | {"config.json", "model.safetensors"}
        for file in [file for file in files if file.endswith(".py")]:
            assert (labram_folders / name / file).read_bytes() == (REPOSITORY / "neurolm_hf" / file).read_bytes()


def test_folders_of_labram_open_without_the_package(labram_folders, tmp_path):
    samples = (EEG((4, 8), 2, seed=1), EEG((1, 4, 6), 3, seed=2))
    save_file(labram_batch(*samples), tmp_path / "inputs.safetensors")
    save_file({"raw": golden("inputs")[f"raw_uv.{SAMPLE}"]}, tmp_path / "raw.safetensors")
    recording_arguments = {name: ARGUMENTS[name] for name in ("ch_names", "sampling_rate", "unit")}
    printed, complaints = run(
        """
        from transformers import AutoModelForSequenceClassification

        raw, arguments = load_file(sys.argv[3])["raw"].numpy(), json.loads(sys.argv[4])
        outputs = {}
        for name, auto_class in (
            ("tokenizer", AutoModel), ("masked", AutoModelForPreTraining),
            ("classifier", AutoModelForSequenceClassification),
        ):
            home = f"{folder}/{name}"
            config = AutoConfig.from_pretrained(home, **trust)
            model = auto_class.from_pretrained(home, **trust)
            extractor = AutoFeatureExtractor.from_pretrained(home, **trust)
            processor = AutoProcessor.from_pretrained(home, **trust)
            print(type(config).__name__, type(model).__name__, extractor.token_order, processor.tokenizer)
            assert all(type(one).__module__.startswith("transformers_modules") for one in (config, model, processor))
            made = processor(eeg=raw, return_tensors="pt", **arguments)
            torch.manual_seed(0)
            with torch.no_grad():
                of_batch, of_recording = model(**inputs), model(**made)
            outputs |= {f"{name}.{key}": of_batch[key] for key in of_batch if of_batch[key].ndim > 1}
            if name != "classifier":
                outputs[f"{name}.made"] = processor.tokenize_eeg(raw, model, **arguments)
            else:
                assert of_recording.logits.shape == (1, 2)
            if name == "masked":
                assert not model.vq.training and not any(p.requires_grad for p in model.vq.parameters())
            model.save_pretrained(f"{sys.argv[6]}/{name}")
            processor.save_pretrained(f"{sys.argv[6]}/{name}")
            half = auto_class.from_pretrained(f"{sys.argv[6]}/{name}", dtype=torch.bfloat16, **trust)
            full = [key for key, value in half.state_dict().items() if value.dtype == torch.float32]
            assert all(".quantizer." in key or ".to_codebook." in key for key in full), full
            assert bool(full) == (name != "classifier")
        base = AutoModel.from_pretrained(f"{folder}/masked", **trust)
        print(type(base).__name__)
        save_file({key: value.contiguous() for key, value in outputs.items()}, sys.argv[5])
        """,
        labram_folders,
        tmp_path / "inputs.safetensors",
        tmp_path / "raw.safetensors",
        json.dumps(recording_arguments),
        tmp_path / "outputs.safetensors",
        tmp_path / "again",
        cache=tmp_path,
    )
    assert printed.split() == [
        *("LaBraMVQConfig", "LaBraMVQModel", "channel_major", "None"),
        *("LaBraMConfig", "LaBraMForMaskedEEGModeling", "channel_major", "None"),
        *("LaBraMConfig", "LaBraMForSequenceClassification", "channel_major", "None", "LaBraMModel"),
    ]
    # the heads that LaBraMModel leaves out are known; nothing is made up
    assert_no_weights_missed(complaints)
    theirs = load_file(tmp_path / "outputs.safetensors")
    for name, make in LABRAM.items():
        model = make()
        torch.manual_seed(0)
        with torch.no_grad():
            ours = model(**labram_batch(*samples))
        for key in [key for key in ours if ours[key].ndim > 1]:
            assert torch.equal(theirs[f"{name}.{key}"], ours[key]), key
        again, first = (
            {path.name: path.read_bytes() for path in (folder / name).iterdir() if path.name != "config.json"}
            for folder in (tmp_path / "again", labram_folders)
        )
        assert again == first
    # codes of a recording: by the tokenizer alone, and by the one within the masked model
    made = NeuroLMProcessor.from_pretrained(labram_folders / "tokenizer")(
        eeg=golden("inputs")[f"raw_uv.{SAMPLE}"].numpy(), return_tensors="pt", **recording_arguments
    )
    assert torch.equal(theirs["tokenizer.made"], labram_vq().encode(**made).codes)
    assert torch.equal(theirs["masked.made"], masked_model().get_eeg_codes(**made))


# --- with the package ------------------------------------------------------------------------------------------------


def test_importing_the_package_is_cheap(tmp_path):
    run(
        """
        import sys
        import neurolm_hf
        heavy = {"torch", "transformers", "numpy", "mne"} & sys.modules.keys()
        assert not heavy, heavy
        assert "NeuroLMForCausalLM" in dir(neurolm_hf)
        """,
        cache=tmp_path,
        alone=False,
    )


@pytest.mark.parametrize(
    "imports",
    [
        "import neurolm_hf; import transformers",
        "import transformers; import neurolm_hf",
        "import transformers; transformers.AutoModelForCausalLM; transformers.AutoProcessor; import neurolm_hf",
        "from neurolm_hf.processing_neurolm import NeuroLMProcessor; import transformers",
    ],
)
def test_with_the_package_no_remote_code_is_needed(imports, saved, labram_folders, tmp_path):
    code = """
    import sys, neurolm_hf
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForCausalLM, AutoProcessor
    from transformers import AutoModelForPreTraining, AutoModelForSequenceClassification
    classes = [AutoConfig, AutoModel, AutoFeatureExtractor, AutoProcessor]
    labram = sys.argv[3]
    for folder, auto_classes in (
        (sys.argv[1], [*classes, AutoModelForCausalLM]),
        (sys.argv[2], classes),
        (f"{labram}/tokenizer", classes),
        (f"{labram}/masked", [*classes, AutoModelForPreTraining]),
        (f"{labram}/classifier", [*classes, AutoModelForSequenceClassification]),
    ):
        for auto_class in auto_classes:
            one = auto_class.from_pretrained(folder)
            assert type(one) is getattr(neurolm_hf, type(one).__name__), type(one)
    """
    code = imports + "\n" + textwrap.dedent(code)
    folders = saved[0], tokenizer_folder(tmp_path), labram_folders
    _, complaints = run(code, *folders, cache=tmp_path, alone=False)
    assert "trust_remote_code" not in complaints


def tokenizer_folder(tmp_path):
    folder = tmp_path / "tokenizer"
    tokenizer_model().vq.save_pretrained(folder)
    NeuroLMProcessor(EEGFeatureExtractor()).save_pretrained(folder)
    return folder

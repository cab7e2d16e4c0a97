"""`neurolm convert`: what it writes, what it refuses, and what it says of both."""

import json
from pathlib import Path

import golden_labram
import pytest
import torch
from golden import PARITY, golden, patches, recording
from test_conversion import NEUROLM, VQ, assert_golden_logits
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
)

from neurolm_hf import LaBraMForMaskedEEGModeling, LaBraMVQModel, NeuroLMVQForPreTraining, NeuroLMVQModel
from neurolm_hf.cli.main import main
from neurolm_hf.processing_neurolm import train_text_tokenizer


REPOSITORY = Path(__file__).parents[1]
LABRAM_VQ, LABRAM, FINE_TUNED = (
    golden_labram.LABRAM_PARITY / f"{name}.pth" for name in ("vqnsp", "labram-base", "labram-finetuned")
)


def convert(capsys, *arguments):
    """(exit status, standard output, standard error)."""
    status = main(["convert", *map(str, arguments)])
    return status, *capsys.readouterr()


def fail(capsys, *arguments):
    """What is said on standard error where nothing can be converted; one line."""
    status, out, err = convert(capsys, *arguments)
    assert (status, out) == (1, ""), err
    assert err.startswith("neurolm convert: error: ")
    assert err.count("\n") == 1
    return err.strip()


@pytest.fixture(scope="module")
def bpe_folder(tmp_path_factory):
    """GPT-2's two files, of 509 words as the golden checkpoints have them, trained on the sources of this project."""
    texts = [path.read_text() for path in (REPOSITORY / "neurolm_hf").glob("*.py")]
    tokenizer = train_text_tokenizer(texts, vocab_size=512)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = {word: index for word, index in tokenizer.get_vocab().items() if index < 509}
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "encoder.json").write_text(json.dumps(words))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "vocab.bpe").write_text("\n".join(["#version: 0.2", *merges]))
    return folder


def assert_golden_codes(codes, index):
    assert torch.equal(codes[0], golden("tokenizer_single_outputs")[f"{index}.codes"])


def test_converts_the_tokenizer_alone(tmp_path, capsys):
    status, out, err = convert(capsys, "--vq", VQ, "--output", tmp_path / "out")
    assert (status, err) == (0, "")
    assert "missing: everything with text" in out
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert type(model) is NeuroLMVQModel
    assert_golden_codes(model.encode(**recording(0)).codes, 0)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert (extractor.sampling_rate, extractor.max_seconds) == (200, 64)
    assert AutoProcessor.from_pretrained(tmp_path / "out").tokenizer is None
    with_adversary = NeuroLMVQForPreTraining.from_pretrained(tmp_path / "out")
    expected = torch.load(VQ, weights_only=True)["model"]["domain_classifier.0.weight"]
    assert torch.equal(with_adversary.alignment_classifier[0].weight, expected)


def test_converts_the_language_model_alone(tmp_path, capsys):
    status, out, err = convert(capsys, "--neurolm", NEUROLM, "--text-tokenizer", "none", "--output", tmp_path / "out")
    assert (status, err) == (0, "")
    assert "missing: VQ tokens" in out
    assert "missing: the text tokenizer" in out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.eeg_token_id == 511
    assert_golden_logits(model, 1)
    with pytest.raises(ValueError, match="no codebook"):
        model.get_eeg_codes(**recording(1))


def test_converts_both_without_text(tmp_path, capsys):
    both = ["--vq", VQ, "--neurolm", NEUROLM, "--text-tokenizer", "none"]
    status, _, err = convert(capsys, *both, "--output", tmp_path / "out")
    assert (status, err) == (0, "")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.eeg_token_id == 511
    assert model.config.stage == "pretrained"
    assert model.generation_config.suppress_tokens == [509, 510, 511]
    assert_golden_codes(model.get_eeg_codes(**recording(2)), 2)
    assert_golden_logits(model, 2)
    provenance = model.config.provenance
    assert provenance["neurolm"].keys() >= {"file", "sha256", "licence"}
    assert provenance["vq"]["file"] == "VQ.pt"
    assert len(provenance["vq"]["sha256"]) == 64
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert not {name for name in files if "tokenizer" in name or name.endswith((".pt", ".bin"))}


def test_converts_both_with_text(tmp_path, capsys, bpe_folder):
    options = ["--stage", "instruction-tuned", "--tasks", "Workload", "--pad-to-patches", 36]
    output = ["--text-tokenizer", bpe_folder, "--output", tmp_path / "out"]
    status, out, err = convert(capsys, "--vq", VQ, "--neurolm", NEUROLM, *options, *output)
    assert (status, err) == (0, "")
    assert "missing" not in out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert model.config.stage == "instruction-tuned"
    assert [task["name"] for task in model.config.tasks] == ["Workload"]
    assert model.config.eeg_token_id == processor.tokenizer.convert_tokens_to_ids("<|eeg|>") == 510
    assert model.generation_config.suppress_tokens == [509, 510, 511]
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id == 508
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id == 511
    # the reference's padded numbers, through the processor's own padding
    facts = json.loads((PARITY / "inputs.json").read_text())["recordings"][1]
    processor.feature_extractor.do_filter = processor.feature_extractor.do_notch = False
    inputs = processor(
        eeg=golden("inputs")["raw_uv.1"].numpy(),
        text="[SEP]Is it? Answer:",
        ch_names=facts["ch_names"],
        sampling_rate=200,
        unit="uV",
        return_tensors="pt",
    )
    eeg = {name: values for name, values in inputs.items() if name in ("input_values", *recording(1, padded=True))}
    codes = model.get_eeg_codes(**eeg)
    assert torch.equal(codes[0, : patches(1)], golden("tokenizer_outputs")["eval.codes"][1, : patches(1)])
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def read_signal(folder, index):
    """Model inputs of a golden recording of LaBraM, through the feature extractor of a converted folder."""
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    extractor.do_filter = extractor.do_notch = False
    ch_names = golden_labram.metadata()["recordings"][index]["ch_names"]
    signal = golden_labram.golden("inputs")[f"raw_uv.{index}"][0].numpy()
    return extractor(signal, ch_names=ch_names, sampling_rate=200, unit="uV", return_tensors="pt")


def test_converts_the_tokenizer_of_labram(tmp_path, capsys):
    status, out, err = convert(capsys, "--vq", LABRAM_VQ, "--output", tmp_path / "out")
    assert (status, err) == (0, "")
    assert "assumed: the tokenizer has 10 attention heads" in out
    assert "missing: masked modelling and classes" in out
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert type(model) is LaBraMVQModel
    codes = model.encode(**read_signal(tmp_path / "out", 1)).codes
    assert torch.equal(codes.flatten(), golden_labram.golden("tokenizer_outputs")["1.codes"].flatten())
    assert AutoProcessor.from_pretrained(tmp_path / "out").tokenizer is None
    assert (tmp_path / "out" / "modeling_labram.py").exists()


def test_converts_the_encoder_of_labram(tmp_path, capsys):
    both = ["--vq", LABRAM_VQ, "--labram", LABRAM]
    status, out, err = convert(capsys, *both, "--output", tmp_path / "out")
    assert (status, err) == (0, "")
    assert "1 dropped: logit_scale, which no published class has" in out
    assert "missing" not in out
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "out")
    assert type(model) is LaBraMForMaskedEEGModeling
    inputs, expected = read_signal(tmp_path / "out", 2), golden_labram.golden("mem_outputs")
    mask = golden_labram.golden("inputs")["mask.2"]
    with torch.no_grad():
        output = model(**inputs, masked=mask)
    assert torch.equal(output.labels.flatten(), expected["2.labels"].flatten())
    assert float((output.loss - expected["2.loss"]).abs()) <= 1e-5
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert (extractor.token_order, extractor.channel_id_offset) == ("channel_major", 1)
    assert (extractor.known_channels, extractor.max_seconds, extractor.max_tokens) == (128, 16, 256)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert convert(capsys, "--vq", VQ, "--output", tmp_path / "out", "--overwrite")[0] == 0
    assert not (tmp_path / "out" / "modeling_labram.py").exists()
    assert (tmp_path / "out" / "notes.txt").exists()


def test_converts_a_fine_tuned_labram(tmp_path, capsys):
    status, out, err = convert(capsys, "--labram", FINE_TUNED, "--tasks", "TUEV", "--output", tmp_path / "out")
    assert (status, err) == (0, "")
    assert "missing" not in out
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert list(model.config.id2label.values()) == ["(A)", "(B)", "(C)", "(D)", "(E)", "(F)"]
    with torch.no_grad():
        logits = model(**read_signal(tmp_path / "out", 1)).logits
    expected = golden_labram.golden("finetune_outputs")["finetuned.1.logits"]
    assert float((logits - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--vq", LABRAM],
            r"labram-base.pth: holds LaBraM's pre-trained encoder (labram-base.pth), neither NeuroLM's",
        ),
        (["--labram", LABRAM, "--vq", VQ], "VQ.pt: holds NeuroLM's neural tokenizer (VQ.pt), not LaBraM's"),
        (["--labram", NEUROLM], "NeuroLM-base.pt: holds NeuroLM's language model"),
        (["--labram", FINE_TUNED, "--vq", LABRAM_VQ], "is fine-tuned and needs no codes"),
        (["--labram", FINE_TUNED, "--tasks", "TUAB"], "has 6 outputs, which 2 classes (No, Yes) do not fit"),
        (["--labram", LABRAM, "--tasks", "TUAB"], "is not fine-tuned"),
        (["--neurolm", LABRAM, "--text-tokenizer", "none"], "holds LaBraM's pre-trained encoder"),
        (["--neurolm", NEUROLM, "--text-tokenizer", "none", "--vq", LABRAM_VQ], "holds LaBraM's neural tokenizer"),
        (["--vq", LABRAM_VQ, "--pad-to-patches", 36], "is LaBraM's, which is never padded"),
    ],
)
def test_refuses_files_that_do_not_belong_together(tmp_path, capsys, arguments, message):
    assert message in fail(capsys, *arguments, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_says_what_is_wrong(tmp_path, capsys):
    message = fail(capsys, "--vq", NEUROLM, "--output", tmp_path / "out")
    assert message == (
        f"neurolm convert: error: {NEUROLM}: holds NeuroLM's language model (NeuroLM-*.pt), neither NeuroLM's neural "
        "tokenizer (VQ.pt) nor LaBraM's neural tokenizer (vqnsp.pth)."
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --vq, --neurolm, --labram, or --vq with one of the others"),
        (["--neurolm", NEUROLM, "--tasks", "Workload"], "--tasks are those of --stage instruction-tuned"),
        (["--vq", VQ, "--stage", "instruction-tuned"], "--stage is the language model's"),
        (["--vq", VQ, "--pad-to-patches", "0"], "must be at least 1"),
        (["--vq", VQ, "--stage", "finished"], "invalid choice"),
        (["--vq", VQ, "--tasks", "TUAB"], "--tasks are those of --stage instruction-tuned, or of --labram"),
        (["--neurolm", NEUROLM, "--labram", LABRAM], "--neurolm and --labram are two models"),
        (["--labram", LABRAM, "--text-tokenizer", "gpt2"], "--text-tokenizer is for NeuroLM's checkpoints"),
        (["--labram", LABRAM, "--stage", "instruction-tuned"], "--stage is for NeuroLM's checkpoints"),
        (["--labram", LABRAM, "--pad-to-patches", "36"], "--pad-to-patches is for NeuroLM's checkpoints"),
        (["--labram", FINE_TUNED, "--tasks", "TUAB", "TUEV"], "--labram has the classes of one task"),
    ],
)
def test_refuses_wrong_usage(tmp_path, capsys, arguments, message):
    status, out, err = convert(capsys, *arguments, "--output", tmp_path / "out")
    assert (status, out) == (2, "")
    assert message in err


def test_help_teaches(capsys):
    status, text, _ = convert(capsys, "--help")
    assert status == 0
    for word in ("REPO_ID:FILE", "--pad-to-patches 276", "encoder.json", "--labram labram-base.pth", "Exit status"):
        assert word in text


def test_keeps_what_is_there(tmp_path, capsys, bpe_folder):
    both = ["--vq", VQ, "--neurolm", NEUROLM, "--output", tmp_path]
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not an empty folder" in fail(capsys, *both)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert convert(capsys, *both, "--text-tokenizer", bpe_folder, "--overwrite")[0] == 0
    assert (tmp_path / "tokenizer.json").exists()
    assert convert(capsys, *both, "--text-tokenizer", "none", "--overwrite")[0] == 0
    assert not (tmp_path / "tokenizer.json").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer is None


def test_refuses_a_text_tokenizer_of_another_vocabulary(tmp_path, capsys, bpe_folder):
    words = json.loads((bpe_folder / "encoder.json").read_text())
    merges = (bpe_folder / "vocab.bpe").read_text().split("\n")
    for change, name in ((-40, "small"), (3, "large")):
        folder = tmp_path / name
        folder.mkdir()
        kept = {word: index for word, index in words.items() if index < 508 + change}
        kept |= {f"word{index}": 509 + index for index in range(max(change, 0))}
        kept["<|endoftext|>"] = 508 if change > 0 else len(kept)
        (folder / "encoder.json").write_text(json.dumps(kept))
        (folder / "vocab.bpe").write_text("\n".join(merges[:change] if change < 0 else merges))
        arguments = ["--vq", VQ, "--neurolm", NEUROLM, "--text-tokenizer", folder, "--output", tmp_path / "out"]
        message = fail(capsys, *arguments)
        assert "is not the one of" in message
        assert "free rows of the text vocabulary are 509 to 511" in message
    assert not (tmp_path / "out").exists()
    message = fail(capsys, "--neurolm", NEUROLM, "--text-tokenizer", tmp_path, "--output", tmp_path / "out")
    assert "text tokenizer" in message
    assert "encoder.json" in message


def test_refuses_unknown_tasks(tmp_path, capsys):
    options = ["--neurolm", NEUROLM, "--stage", "instruction-tuned", "--output", tmp_path / "out"]
    assert "no task 'Sleep'" in fail(capsys, *options, "--tasks", "Sleep")
    assert "absent.json" in fail(capsys, *options, "--tasks", tmp_path / "absent.json")


def test_as_json(tmp_path, capsys):
    status, out, _ = convert(capsys, "--vq", VQ, "--output", tmp_path / "out", "--json")
    answer = json.loads(out)
    assert (status, answer["output"], answer["model"]) == (0, str(tmp_path / "out"), "NeuroLMVQForPreTraining")
    model = NeuroLMVQForPreTraining.from_pretrained(answer["output"])
    assert answer["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert len(answer["converted"]) + len(answer["dropped"]) == len(torch.load(VQ, weights_only=True)["model"])
    assert answer["missing"][0].startswith("everything with text")

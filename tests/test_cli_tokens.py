"""`neurolm tokens`: the codes of the processor's `tokenize_eeg`, by window, second and channel, in every format."""

import argparse
import csv
import json
import types

import numpy as np
import pytest
import torch
from cli_folders import write_models, write_recordings
from labram_folders import write_labram_folders
from recording_files import write_edf
from safetensors import safe_open
from tiny import randomize
from tiny_labram import labram_vq, masked_model

from neurolm_hf import NeuroLMConfig, NeuroLMForCausalLM, NeuroLMForSequenceClassification, NeuroLMProcessor
from neurolm_hf.channels_neurolm import CHANNEL_VOCABULARY
from neurolm_hf.cli.console import Console
from neurolm_hf.cli.main import main
from neurolm_hf.cli.tokens import recording_tokens
from neurolm_hf.processing_neurolm import LABRAM_LAYOUT, EEGFeatureExtractor


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def labram(tmp_path_factory):
    return write_labram_folders(tmp_path_factory.mktemp("labram"))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A good one, a bad one, a good one."""
    return write_recordings(tmp_path_factory.mktemp("recordings"))


@pytest.fixture(scope="module")
def wanted(models, recordings):
    """path -> codes (windows, seconds, channels) of windows of nine seconds, by the processor."""
    model = NeuroLMForCausalLM.from_pretrained(models["tuned"])
    processor = NeuroLMProcessor.from_pretrained(models["tuned"])
    processor.feature_extractor.window_seconds = 9
    good = (recordings[0], recordings[2])
    return {str(path): processor.tokenize_eeg(str(path), model).reshape(4, 9, 2).numpy() for path in good}


def tokens(capsys, *arguments):
    """(exit status, standard output, standard error)."""
    status = main(["tokens", *map(str, arguments), "--device", "cpu"])
    return status, *capsys.readouterr()


@pytest.mark.parametrize("name", ["vq", "tuned", "adapter"])
def test_json_has_the_codes_of_the_processor(models, recordings, wanted, capsys, name):
    """A neural tokenizer, the NeuroLM that holds it, and an adapter, which leaves it as it is."""
    options = ["--window-seconds", 9, "--batch-size", 3, "--json"]
    status, out, err = tokens(capsys, *recordings, "--model", models[name], *options)
    first, failed, second = map(json.loads, out.splitlines())
    assert (status, err) == (1, f"neurolm tokens: error: {failed['error']}\n")
    assert set(failed) == {"path", "error"}
    for document, channels in ((first, ["FP1", "FP2"]), (second, ["C3", "O2"])):
        assert set(document) == {"path", "codebook_size", "channels", "windows"}
        assert (document["codebook_size"], document["channels"]) == (32, channels)
        assert [(one["start"], one["end"]) for one in document["windows"]] == [(0, 9), (9, 18), (18, 27), (27, 36)]
        codes = np.array([one["codes"] for one in document["windows"]])
        assert np.array_equal(codes, wanted[document["path"]])
    assert len(np.unique(wanted[str(recordings[0])])) > 3, "the codes tell something"


@pytest.mark.parametrize("layout", [{}, LABRAM_LAYOUT])
def test_codes_lie_by_second_and_channel_in_either_order(recordings, layout):
    """By a model whose codes say which patch they are of."""
    extractor = EEGFeatureExtractor(**{**layout, "window_seconds": 9, "pad_to_patches": 20})
    model = types.SimpleNamespace(
        device="cpu",
        dtype=torch.float32,
        encode=lambda eeg_channel_ids, eeg_time_ids, **_: types.SimpleNamespace(
            codes=1000 * eeg_time_ids + eeg_channel_ids - extractor.channel_id_offset
        ),
    )
    options = argparse.Namespace(unit=None, unknown_channels=None, batch_size=3)
    read = recording_tokens(str(recordings[0]), model, extractor, options, Console("neurolm tokens"))
    names = [CHANNEL_VOCABULARY.index(name) for name in read.channels]
    assert read.codes.tolist() == [[[1000 * second + name for name in names] for second in range(9)]] * 4


@pytest.mark.parametrize("name", ["tokenizer", "masked"])
def test_tokens_of_labram_lie_as_neurolms(labram, recordings, capsys, tmp_path, name):
    """By its tokenizer, and by the model that holds it; patches go channel by channel into these."""
    processor = NeuroLMProcessor.from_pretrained(labram / name)
    processor.feature_extractor.window_seconds = 9
    inputs = processor(eeg=str(recordings[0]), return_tensors="pt")
    rows = [CHANNEL_VOCABULARY.index(channel) + 1 for channel in ("FP1", "FP2")]
    assert inputs["eeg_channel_ids"][0].tolist() == [rows[0]] * 9 + [rows[1]] * 9
    inputs = {name: values for name, values in inputs.items() if name.startswith(("input_values", "eeg_"))}
    encode = masked_model().get_eeg_codes if name == "masked" else lambda **given: labram_vq().encode(**given).codes
    wanted = encode(**inputs).view(4, 2, 9).transpose(1, 2)
    assert len(wanted.unique()) > 3, "the codes tell something"

    options = ["--model", labram / name, "--window-seconds", 9, "--batch-size", 3]
    status, out, err = tokens(capsys, recordings[0], *options, "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert (document["codebook_size"], document["channels"]) == (32, ["FP1", "FP2"])
    assert [one["codes"] for one in document["windows"]] == wanted.tolist()
    _, out, _ = tokens(capsys, recordings[0], *options)
    assert [list(map(int, line.split())) for line in out.splitlines() if line[:1].isdigit()] == [
        [second, *codes] for second, codes in enumerate(wanted.flatten(0, 1).tolist())
    ]
    tokens(capsys, recordings[0], *options, "--output", tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert arrays["codes"].tolist() == wanted.tolist()
        assert arrays["channels"].tolist() == ["FP1", "FP2"]


def test_what_labram_cannot_tokenize_is_said(labram, recordings, capsys, tmp_path):
    status, _, err = tokens(capsys, recordings[0], "--model", labram / "classifier")
    assert (status, err.count("\n")) == (1, 1)
    assert "classifier is a LaBraM without the tokenizer that its codes are of: give that one" in err
    bipolar = write_edf(tmp_path / "tcp.edf", names=("EEG Fp1-F7", "EEG I1"), seconds=40)
    status, _, err = tokens(capsys, bipolar, "--model", labram / "tokenizer")
    assert (status, "this model has no row for 1 channel(s): 'EEG I1'" in err) == (1, True)
    status, out, _ = tokens(capsys, bipolar, "--model", labram / "tokenizer", "--unknown-channels", "drop", "--json")
    assert (status, json.loads(out)["channels"]) == (0, ["FP1-F7"])
    assert {one["end"] - one["start"] for one in json.loads(out)["windows"]} == {16}
    status, _, err = tokens(capsys, recordings[0], "--model", labram / "tokenizer", "--window-seconds", 17)
    assert (status, "16 s at most" in err) == (1, True)


def test_a_table_for_people(models, recordings, wanted, capsys):
    status, out, err = tokens(capsys, recordings[0], "--model", models["vq"], "--window-seconds", 9)
    codes = wanted[str(recordings[0])]
    assert (status, err) == (0, "")
    lines = out.splitlines()
    used = len(np.unique(codes))
    assert lines[0] == f"{recordings[0]}: 4 x 9 s of 2 channels; {used} of 32 codes are used"
    assert lines[1:3] == ["", "seconds  FP1  FP2"]
    rows = [list(map(int, line.split())) for line in lines if line[:1].isdigit()]
    assert rows == [[second, *map(int, row)] for second, row in enumerate(codes.reshape(36, 2))]


def test_a_narrow_terminal_has_fewer_columns(models, recordings, capsys, monkeypatch):
    monkeypatch.setattr("neurolm_hf.cli.tokens._width", lambda: 15)
    _, out, _ = tokens(capsys, recordings[0], "--model", models["vq"], "--window-seconds", 40)
    assert [line.split()[1:] for line in out.splitlines() if line.startswith("seconds")] == [["FP1"], ["FP2"]]


def test_csv_holds_all_recordings(models, recordings, wanted, capsys, tmp_path):
    place = tmp_path / "all.csv"
    place.write_text("of an earlier run")
    arguments = [*recordings, "--model", models["vq"], "--window-seconds", 9, "--output", place]
    status, out, err = tokens(capsys, *arguments)
    assert (status, out, err.count("\n")) == (1, "", 1)
    with open(place, newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "window", "second", "channel", "code"]
    right = [
        [path, str(window), str(9 * window + second), channel, str(code)]
        for (path, codes), names in zip(wanted.items(), (("FP1", "FP2"), ("C3", "O2")), strict=True)
        for window, of_window in enumerate(codes)
        for second, of_second in enumerate(of_window)
        for channel, code in zip(names, of_second, strict=True)
    ]
    assert rows == right


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_are_a_file_each(models, recordings, wanted, capsys, tmp_path, suffix):
    arguments = ["--model", models["vq"], "--window-seconds", 9, "--output", tmp_path / f"x{suffix}"]
    status, out, _ = tokens(capsys, *recordings, *arguments)
    assert (status, out) == (1, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"x-1{suffix}", f"x-3{suffix}"]
    assert tokens(capsys, recordings[2], *arguments)[0] == 0
    for file in (tmp_path / f"x-3{suffix}", tmp_path / f"x{suffix}"):
        if suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                codes, starts, channels = arrays["codes"], arrays["starts"], arrays["channels"].tolist()
        else:
            with safe_open(file, "np") as arrays:
                codes, starts = arrays.get_tensor("codes"), arrays.get_tensor("starts")
                channels = arrays.metadata()["channels"].split()
        assert np.array_equal(codes, wanted[str(recordings[2])])
        assert (starts.tolist(), channels) == ([0, 9, 18, 27], ["C3", "O2"])


def test_classifiers_have_tokens_too(models, recordings, wanted, capsys, tmp_path):
    config = NeuroLMConfig.from_pretrained(models["tuned"], num_labels=2)
    torch.manual_seed(0)
    classifier = randomize(NeuroLMForSequenceClassification(config), scale=0.0)
    whole = NeuroLMForCausalLM.from_pretrained(models["tuned"])
    classifier.model.load_state_dict(whole.model.state_dict())
    classifier.save_pretrained(tmp_path)
    NeuroLMProcessor.from_pretrained(models["tuned"]).save_pretrained(tmp_path)
    status, out, err = tokens(capsys, recordings[0], "--model", tmp_path, "--window-seconds", 9, "--json")
    assert (status, err) == (0, "")
    codes = np.array([one["codes"] for one in json.loads(out)["windows"]])
    assert np.array_equal(codes, wanted[str(recordings[0])])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "a.mat"], "--output is a file named .csv, .npz, .safetensors, not a.mat"),
        (["--output", "nowhere/a.npz"], "there is no folder nowhere to write a.npz to"),
        (["--output", "a.npz", "--json"], "give --output or --json, not both"),
        (["--window-seconds", "-3"], "--window-seconds must be above 0, not -3"),
    ],
)
def test_wrong_usage(models, recordings, capsys, arguments, message):
    status, out, err = tokens(capsys, recordings[0], "--model", models["vq"], *arguments)
    assert (status, out) == (2, "")
    assert message in err


def test_models_and_recordings_that_do_not_fit(models, recordings, capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    status, _, err = tokens(capsys, recordings[0], "--model", tmp_path)
    assert (status, err.count("\n")) == (1, 1)
    assert f"{tmp_path} is a gpt2, which makes no tokens of EEG" in err
    status, _, err = tokens(capsys, recordings[0], "--model", models["vq"], "--window-seconds", 65)
    assert status == 1
    assert str(recordings[0]) in err
    assert "exceed the budget" in err

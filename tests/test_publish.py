"""The script: what it says, what it refuses, and that a dry run asks nobody."""

import json

import pytest
from hub_server import TOKEN, hub_server
from prepared_folders import write_prepared
from published_folders import write_folders
from test_recipes import script_module

from neurolm_hf.dataset_card import write_card


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, for this process."""
    with hub_server(tmp_path / "hub") as running:
        running.open_to_this_process(monkeypatch, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def publish(*arguments):
    """Exit status of the script."""
    try:
        script_module("publish").main([str(argument) for argument in arguments])
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code)
            return 1
        return end.code or 0
    return 0


def test_a_model_and_its_adapter(folders, hub, capsys):
    assert publish(folders / "pretrained", "tester/base", "--licence", "cc-by-4.0", "--public") == 0
    printed = capsys.readouterr().out
    commit = hub.repositories["model", "tester/base"].branches["main"]
    assert printed.splitlines()[-2:] == [
        f"address  {hub.endpoint}/tester/base/commit/{commit}",
        f'pin it   revision="{commit}"',
    ]
    assert "license: cc-by-4.0" in hub.files("tester/base")["README.md"].decode()
    assert not hub.repositories["model", "tester/base"].private
    assert publish(folders / "adapter", "tester/adapter", "--base-model", "tester/base", "--revision", "second") == 0
    files = hub.files("tester/adapter", revision="second")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "tester/base"
    assert hub.repositories["model", "tester/adapter"].private


def test_a_licence_is_asked_for_again(folders, hub, capsys):
    assert publish(folders / "vq", "tester/vq", "--licence", "mit") == 0
    assert publish(folders / "vq", "tester/vq") == 1
    assert "give scripts/publish.py --licence again, or --replace-card to do without" in capsys.readouterr().out
    assert publish(folders / "vq", "tester/vq", "--replace-card") == 0
    assert publish(folders / "vq", "tester/vq", "--public") == 1
    assert "tester/vq is there already, and private" in capsys.readouterr().out


def test_a_dry_run_tells_all_and_asks_nobody(folders, hub, capsys):
    assert publish(folders / "tuned", "tester/model", "--dry-run") == 0
    goes, stays, _, *card = capsys.readouterr().out.splitlines()
    assert goes.startswith("goes     README.md, channels_neurolm.py,")
    assert "training_args.bin" not in goes
    assert stays == (
        "stays    .lock, checkpoint-4/, notes.txt, optimizer.pt, settings.json, training.json, training_args.bin"
    )
    assert "# model" in card
    assert hub.requests == []


def test_a_prepared_set(hub, tmp_path, capsys):
    prepared = write_prepared(tmp_path / "set", [("a_1.edf", "a", "train")])
    write_card(prepared)
    assert publish(prepared, "tester/set", "--licence", "mit", "--dry-run") == 2
    assert "is a prepared set: --licence, --dry-run are for models" in capsys.readouterr().err
    assert publish(prepared, "tester/set") == 0
    assert hub.repositories["dataset", "tester/set"].private
    assert "data/train/0.parquet" in hub.files("tester/set", "dataset")


def test_errors_are_one_line(folders, hub, tmp_path, capsys, monkeypatch):
    for arguments, words in (
        ((tmp_path, "tester/x"), "holds no model: there is neither a config.json nor an adapter_config.json."),
        ((folders / "adapter", "tester/x"), "publish that model first"),
        ((folders / "tuned", "tester/x", "--results", tmp_path), "holds no results"),
        ((folders / "tuned", "not/a/name"), "Repo id must be"),
        ((folders / "tuned", "somebody/x"), "You don't have the rights"),
    ):
        assert publish(*arguments) == 1
        printed = capsys.readouterr().out.splitlines()
        assert printed[-1].startswith("error: ")
        assert words in printed[-1]
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert publish(folders / "tuned", "tester/x") == 1
    assert "Invalid user token" in capsys.readouterr().out
    assert hub.repositories == {}
    assert publish(folders / "tuned") == 2
    assert "the following arguments are required: ID" in capsys.readouterr().err


def test_an_edited_card_is_told(folders, hub, capsys):
    card = folders / "vq" / "README.md"
    card.write_text("# Mine\n")
    try:
        assert publish(folders / "vq", "tester/vq") == 0
    finally:
        card.unlink()
    assert "note     README.md has been edited and goes as it is" in capsys.readouterr().out
    assert hub.files("tester/vq")["README.md"] == b"# Mine\n"

"""The study on two folds of made-up recordings, a few steps a stage: its files, its table, and that it goes on."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from neurolm_hf.recipes import read_recipe
from neurolm_hf.simulation import simulate_recordings


ROOT = Path(__file__).parent.parent
STEPS = {"max_steps": 2, "total_train_batch_size": 4, "per_device_train_batch_size": 4, "save_steps": 2}


@pytest.fixture(scope="module")
def study():
    specification = importlib.util.spec_from_file_location("study", ROOT / "scripts" / "study.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["study"] = module
    specification.loader.exec_module(module)
    return module


def answers_of(study, name, fold, shift=0.0, seed=0):
    rng = np.random.default_rng([seed, fold])
    labels = np.tile([0, 1], 20)
    scores = 1 / (1 + np.exp(-(labels - 0.5 + shift + rng.normal(size=40))))
    subjects = np.repeat([f"s{fold}{i}" for i in range(4)], 10)
    return study.Scores(
        name, fold, 0, scores.tolist(), (scores > 0.5).astype(float).tolist(), labels.tolist(), subjects.tolist()
    )


def test_figures_are_means_over_folds_and_seeds(study):
    scores = [answers_of(study, study.NEUROLM, fold) for fold in range(3)]
    figures = study.means(scores)
    aurocs = [study.auroc(one.labels, one.probabilities) for one in scores]
    value, interval = figures["AUROC"]
    assert value == pytest.approx(np.mean(aurocs))
    assert interval.low < value < interval.high
    # the same answers are no better than themselves, whoever is drawn
    for value, interval in study.means(scores, scores).values():
        assert (value, *interval) == (0.0, 0.0, 0.0)


def test_the_difference_is_drawn_by_subject_in_pairs(study):
    ours = [answers_of(study, study.NEUROLM, fold, seed=1) for fold in range(3)]
    others = [answers_of(study, study.BASELINE, fold, seed=2) for fold in range(3)]
    difference, interval = study.means(ours, others)["AUROC"]
    assert difference == pytest.approx(study.means(ours)["AUROC"][0] - study.means(others)["AUROC"][0])
    assert interval.low < difference < interval.high


def test_a_variant_shares_what_it_does_not_change(study, tmp_path):
    full = {stage: study.place(tmp_path, study.NEUROLM, 0, 1, stage) for stage in study.STAGES}
    without = {stage: study.place(tmp_path, "without pre-training", 0, 1, stage) for stage in study.STAGES}
    assert without["vq"] == full["vq"]
    assert without["tuned"] != full["tuned"]
    assert study.command(tmp_path, "without pre-training", 0, 1, "pretrained") is None
    other_seed = {stage: study.place(tmp_path, study.NEUROLM, 0, 2, stage) for stage in study.STAGES}
    assert [stage for stage in full if full[stage] != other_seed[stage]] == ["tuned"]
    assert study.place(tmp_path, "raw target only", 0, 1, "vq") != full["vq"]
    untrained = "LaBraM without pre-training"
    assert study.place(tmp_path, untrained, 0, 1, "vq") == study.place(tmp_path, study.LABRAM, 0, 1, "vq")
    assert study.place(tmp_path, untrained, 0, 1, "pretrained") != study.place(
        tmp_path, study.LABRAM, 0, 1, "pretrained"
    )
    assert study.place(tmp_path, study.LABRAM, 0, 1, "vq") != full["vq"]


@pytest.mark.parametrize("stage", ["vq", "pretrained", "tuned"])
def test_a_variant_changes_one_thing_in_the_recipe(study, tmp_path, stage):
    for name, changes in study.VARIANTS.items():
        if changes.get(stage, {}) is None:
            continue
        command = study.command(tmp_path, name, 0, 0, stage)
        written = yaml.safe_load(Path(command[2]).read_text())
        recipe = read_recipe(study.RECIPES / study.COMMANDS[study.model_of(name)][stage][1])
        recipe.pop("text_config", None)
        different = {key for key in written.keys() | recipe.keys() if written.get(key) != recipe.get(key)}
        assert different == set(changes.get(stage, {}))
        assert Path(command[1]).name == study.COMMANDS[study.model_of(name)][stage][0]


def test_a_subject_never_stands_in_two_parts(study, tmp_path):
    files = [tmp_path / f"Subject{i:02d}_1.edf" for i in range(2)]
    for file in files:
        file.touch()
    study.link_recordings(tmp_path / "fold", {files[0]: "train", files[1]: "test"})
    study.link_recordings(tmp_path / "fold", {files[0]: "train", files[1]: "test"})
    assert (tmp_path / "fold/test/Subject01_1.edf").resolve() == files[1]
    with pytest.raises(ValueError, match="of other recordings"):
        study.link_recordings(tmp_path / "fold", {files[0]: "test", files[1]: "train"})


def test_a_run_that_fails_is_named(study, tmp_path):
    fine = [sys.executable, "-c", "print('fine')"]
    bad = [sys.executable, "-c", "import sys; sys.exit('error: no such thing')"]
    with pytest.raises(ValueError, match=r"bad: exit status 1.*no such thing"):
        study.run_all({tmp_path / "bad": bad, tmp_path / "fine": fine}, jobs=1)
    assert (tmp_path / "fine.log").read_text() == "fine\n"


@pytest.mark.slow
def test_the_study_runs_and_goes_on(study, tmp_path, monkeypatch, capsys):
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    for file in {file for stages in study.COMMANDS.values() for _, file in stages.values()}:
        recipe = read_recipe(study.RECIPES / file) | STEPS
        if "vq_config" in recipe:
            recipe["quantizer_warmup_steps"] = 1
        (recipes / file).write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(study, "RECIPES", recipes)
    monkeypatch.setattr(study, "FOLDS", 2)
    monkeypatch.setattr(study, "SEEDS", 1)
    monkeypatch.setattr(study, "VARIANTS", {name: study.VARIANTS[name] for name in study.ON_ALL_FOLDS})
    simulate_recordings(tmp_path / "recordings", subjects=4)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "study.md").write_text("Before.\n" + "\n".join(study.MARKS) + "\nAfter.\n")
    arguments = study.StudyArguments(tmp_path / "recordings", tmp_path / "out", jobs=2, docs=docs)
    study.main(arguments)
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert [(one["variant"], one["fold"]) for one in scores] == [
        (study.NEUROLM, 0),
        (study.NEUROLM, 1),
        ("without pre-training", 0),
        ("without pre-training", 1),
        (study.LABRAM, 0),
        (study.LABRAM, 1),
        ("LaBraM without pre-training", 0),
        ("LaBraM without pre-training", 1),
        (study.BASELINE, 0),
        (study.BASELINE, 1),
        (study.PROBE, 0),
        (study.PROBE, 1),
    ]
    assert {subject for one in scores[:2] for subject in one["subjects"]} == {f"Subject{i:02d}" for i in range(4)}
    page = (docs / "study.md").read_text()
    assert page.startswith("Before.\n")
    assert page.endswith("\nAfter.\n")
    assert "| without pre-training |" in page
    assert "| LaBraM, above NeuroLM |" in page
    assert (docs / "study-losses.png").stat().st_size > 5000
    # a second time, nothing is trained again
    weights = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("checkpoint-*/*.safetensors")}
    # four stages of NeuroLM and its variant, as many of LaBraM and its
    assert len(weights) == 2 * (4 + 5)
    study.main(arguments)
    assert weights == {file: file.stat().st_mtime_ns for file in weights}
    assert (docs / "study.md").read_text() == page

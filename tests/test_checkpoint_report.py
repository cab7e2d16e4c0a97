"""The report of a checkpoint: what its page says is what codes, answers, evaluation and training log say."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labram_folders import write_labram_folders
from pages import checked
from prepared_folders import write_prepared
from stage_folders import write_language_model, write_text_model, write_tokenizer, write_vq
from tiny_labram import labram_vq

from neurolm_hf import NeuroLMConfig, NeuroLMForCausalLM, NeuroLMProcessor, NeuroLMVQModel, checkpoint_report, figures
from neurolm_hf.answering import open_model, open_set
from neurolm_hf.channels_neurolm import CHANNEL_VOCABULARY
from neurolm_hf.checkpoint_report import write_checkpoint_report
from neurolm_hf.checkpoints import seal
from neurolm_hf.codebook_use import code_frequencies, two_dimensions
from neurolm_hf.collators import EEGCollator
from neurolm_hf.evaluation import evaluate_set
from neurolm_hf.evaluation_report import EvaluatedModel, Evaluation
from neurolm_hf.processing_neurolm import LABRAM_LAYOUT, EEGFeatureExtractor
from neurolm_hf.scoring import score_rows
from neurolm_hf.starting_models import describe_source
from neurolm_hf.storage import load_prepared
from neurolm_hf.tasks import load_task


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of few pixels: most of the time would go into drawing them."""
    monkeypatch.setitem(figures.STYLE, "figure.dpi", 40)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vq`, `tuned` and `task`: a neural tokenizer, a model of it, and windows of four test subjects."""
    folder = tmp_path_factory.mktemp("home")
    write_text_model(folder / "text", write_tokenizer(folder / "words"))
    write_vq(folder / "vq")
    write_language_model(folder / "tuned", folder / "vq", folder / "text", stage="instruction-tuned")
    config = NeuroLMConfig.from_pretrained(folder / "tuned")
    config.tasks = [load_task("Workload").config_entry()]
    config.provenance = {
        "made_by": "a <test>",
        "steps": 7,
        "epochs": 1.23456,
        "data": [{"task": "Workload", "windows": 16, "subjects": ["t0"]}],
    }
    config.save_pretrained(folder / "tuned")
    recordings = [
        (f"{split}{i}.edf", f"{split}{i}", split) for split, n in (("train", 4), ("test", 4)) for i in range(n)
    ]
    write_prepared(folder / "task", recordings)
    return folder


def write(home: Path, output: Path, model: str = "tuned", **options: Any) -> Path:
    return write_checkpoint_report(str(home / model), str(home / "task"), output, **options)


def counts_of(home: Path) -> Counter:
    vq = NeuroLMVQModel.from_pretrained(home / "vq").eval()
    collator = EEGCollator(open_model(str(home / "tuned")).processor.feature_extractor)
    codes = []
    for row in load_prepared(home / "task", "test"):
        inputs = collator([row])
        inputs.pop("rows")
        with torch.no_grad():
            codes += vq.encode(**inputs).codes.flatten().tolist()
    return Counter(codes)


def test_a_model_is_asked_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def score(model: Any, processor: Any, rows: Any, *given: Any) -> Any:
        asked.append(len(rows))
        return score_rows(model, processor, rows, *given)

    monkeypatch.setattr("neurolm_hf.answering.score_rows", score)
    write(home, tmp_path)
    assert asked == [8]


def test_a_page_of_a_model(home: Path, tmp_path: Path) -> None:
    page = write(home, tmp_path, tokenizer=str(home / "vq"), batch_size=3)
    text, headings = checked(page)
    assert headings == [
        "The windows", "Scores", "Answers and truth", "Can the probabilities be believed?", "Codebook",
        "Map of the codes", "Reconstructions", "Training", "How this was made",
    ]  # fmt: skip
    assert "Checkpoint tuned On 8 windows of the test split of task." in text
    answering, asked = open_model(str(home / "tuned")), open_set(str(home / "task"))
    result = evaluate_set(asked, {"tuned": answering}, written_windows=0)
    for name in ("balanced_accuracy", "roc_auc"):
        score = result.models["tuned"].scores[name]
        assert f"{score.value:.3f} ({score.low:.2f} to {score.high:.2f})" in text
        less = result.models["tuned"].less_baseline[name]
        assert f"{less.value:+.3f} ({less.low:+.2f} to {less.high:+.2f})" in text
    right = Counter()
    for row, scores in score_rows(answering.model, answering.processor, asked.rows, asked.task, 8):
        right[row["answer"]] += asked.task.classes[int(scores.argmax())] == row["answer"]
    assert f"Answered right: No {right['No']} of 4, Yes {right['Yes']} of 4." in page.read_text()

    counts = counts_of(home)
    count = max(counts.values())
    assert f"64 patches of 8 windows. {32 - len(counts)} codes of 32 are never used there." in text
    assert f"{count} {count / 64:.1%}" in text
    assert "Made by a <test> Steps 7 Epochs 1.23 Trained on Workload, 16 windows of 1 subjects" in text
    assert "No curves: there is no trainer_state.json." in text
    assert "test0.edf" in text or "test1.edf" in text


def test_a_page_of_a_tokenizer_needs_no_question(home: Path, tmp_path: Path) -> None:
    write_prepared(tmp_path / "corpus", [("a.edf", "a", "train")], task="Corpus")
    page = write_checkpoint_report(str(home / "vq"), str(tmp_path / "corpus"), tmp_path / "out", split="train")
    text, headings = checked(page)
    assert headings == [
        "The windows",
        "Codebook",
        "Map of the codes",
        "Reconstructions",
        "Training",
        "How this was made",
    ]
    assert "16 patches of 2 windows." in text
    assert len(list((tmp_path / "out").glob("reconstruction-*.png"))) == 2
    with pytest.raises(ValueError, match="is a neural tokenizer, of which there is no evaluation"):
        write(home, tmp_path / "none", "vq", evaluation=tmp_path)


def test_a_page_of_labrams_tokenizer_shows_its_spectra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_prepared(tmp_path / "corpus", [("a.edf", "a", "train")], task="Corpus")
    write_labram_folders(tmp_path)
    drawn: list[Any] = []
    draw = figures.plot_amplitudes
    monkeypatch.setattr(figures, "plot_amplitudes", lambda *given: drawn.append(given) or draw(*given))
    tokenizer, corpus = str(tmp_path / "tokenizer"), str(tmp_path / "corpus")
    page = write_checkpoint_report(tokenizer, corpus, tmp_path / "out", split="train")
    text, headings = checked(page)
    assert headings[1:4] == ["Codebook", "Map of the codes", "Reconstructions"]
    assert "16 patches of 2 windows." in text
    assert "up to 45 Hz" in text
    assert len(list((tmp_path / "out").glob("reconstruction-*.png"))) == 2
    vq, extractor = labram_vq(), EEGFeatureExtractor(**LABRAM_LAYOUT)
    rows = load_prepared(tmp_path / "corpus", "train")
    for (target, predicted, channels), row in zip(drawn, rows, strict=True):
        inputs = EEGCollator(extractor)([row])
        inputs.pop("rows")
        with torch.no_grad():
            outputs = vq(**inputs)
        # channel by channel, means over its seconds
        assert channels == list(row["channels"])
        for name, given, made in zip(channels, target, predicted, strict=True):
            patches = inputs["eeg_channel_ids"][0] == CHANNEL_VOCABULARY.index(name) + 1
            np.testing.assert_allclose(given, outputs.target_amplitude[0, patches].mean(0)[:101], atol=1e-5)
            np.testing.assert_allclose(made, outputs.amplitude[0, patches].mean(0)[:101], atol=1e-5)
    assert "Amplitude spectrum and reconstruction; mean correlation over" in page.read_text()
    for name in ("masked", "classifier"):
        with pytest.raises(ValueError, match=f"{name} is a labram, which answers nothing in words"):
            write_checkpoint_report(str(tmp_path / name), corpus, tmp_path / "none", split="train")


def test_codes_are_marked_by_what_they_decode_to(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    draw = checkpoint_report.plot_code_map
    monkeypatch.setattr(checkpoint_report, "plot_code_map", lambda *given: drawn.append(given) or draw(*given))
    text, _ = checked(write(home, tmp_path, "vq"))
    ((places, counts, hertz, explained),) = drawn
    assert counts.tolist() == [counts_of(home)[code] for code in range(32)]
    vq = NeuroLMVQModel.from_pretrained(home / "vq").eval()
    expected, shares = two_dimensions(vq.encoder.quantizer.codebook)
    np.testing.assert_array_equal(places, expected)
    assert explained == shares
    np.testing.assert_array_equal(hertz, code_frequencies(vq, EEGFeatureExtractor(), counts)[0])
    assert "up to 45 Hz" in text


def test_scores_come_from_an_evaluation_that_is_given(home: Path, tmp_path: Path) -> None:
    answering, asked = open_model(str(home / "tuned")), open_set(str(home / "task"))
    result = evaluate_set(asked, {"beside": answering, "the other name": answering}, written_windows=0)
    result.notes.append("Judged <elsewhere>.")
    result.models["the other name"].by_subject[0]["subject"] = "someone"
    # found by its weights among those that were compared
    models = {
        "beside": EvaluatedModel("answers", {"folder": "x", "sha256": "y"}),
        "the other name": EvaluatedModel("answers", describe_source(str(home / "tuned"))),
    }
    Evaluation(models, False, [result]).write(tmp_path / "results")
    text, _ = checked(write(home, tmp_path / "out", evaluation=tmp_path / "results"))
    assert "Scores, from results, on all windows of the split" in text
    assert "Metric the other name log band power, logistic regression chance" in text
    assert "Judged <elsewhere>." in text
    assert "someone" in text
    file = tmp_path / "results" / "results.json"
    file.write_text(file.read_text().replace("f" * 64, "e" * 64))
    with pytest.raises(
        ValueError, match=r"no result about the test split of .*task as it is now; it has Workload, test"
    ):
        write(home, tmp_path / "none", evaluation=tmp_path / "results")
    Evaluation({"beside": models["beside"]}, False, []).write(tmp_path / "results")
    with pytest.raises(ValueError, match=r"is an evaluation of beside, of other weights than those of .*tuned"):
        write(home, tmp_path / "none", evaluation=tmp_path / "results")


def test_curves_are_those_of_the_last_checkpoint(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    draw = checkpoint_report.plot_losses
    monkeypatch.setattr(checkpoint_report, "plot_losses", lambda given: drawn.append(given) or draw(given))
    history = [
        {"step": 10, "loss": 2.0, "eeg_loss": 1.5, "learning_rate": 1.0},
        {"step": 20, "loss": 1.0, "eeg_loss": 0.5, "learning_rate": 1.0},
        {"step": 20, "eval_loss": 1.25, "eval_perplexity": 3.0},
        {"step": 20, "train_loss": 1.5},
    ]
    for step in (10, 20):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        kept = [entry for entry in history if entry["step"] <= step]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": kept}))
        seal(folder)
    page = write(home, tmp_path / "out", "vq", training=tmp_path / "run")
    assert drawn == [
        {
            "Training": {"loss": ([10, 20], [2.0, 1.0]), "eeg_loss": ([10, 20], [1.5, 0.5])},
            "Validation": {"loss": ([20], [1.25])},
        }
    ]
    assert "loss 2 to 1, eeg_loss 1.5 to 0.5" in page.read_text()
    with pytest.raises(ValueError, match="is no training's folder"):
        write(home, tmp_path / "none", "vq", training=tmp_path)
    (tmp_path / "run" / "checkpoint-20" / "trainer_state.json").write_text("[]")
    seal(tmp_path / "run" / "checkpoint-20")
    with pytest.raises(ValueError, match="is no state of a Trainer"):
        write(home, tmp_path / "none", "vq", training=tmp_path / "run")


def test_of_many_windows_some_are_read(home: Path, tmp_path: Path) -> None:
    text, _ = checked(write(home, tmp_path, windows_at_most=3))
    assert "3 of 8 windows, evenly spread" in text
    assert "24 patches of 3 of 8 windows" in text
    assert "a NeuroLM holds no decoder" in text


def test_a_model_without_codebook(home: Path, tmp_path: Path) -> None:
    model = NeuroLMForCausalLM.from_pretrained(home / "tuned")
    config = NeuroLMConfig.from_pretrained(home / "tuned")
    config.eeg_config.has_codebook = False
    bare = NeuroLMForCausalLM(config)
    bare.load_state_dict(model.state_dict(), strict=False)
    bare.save_pretrained(tmp_path / "bare")
    NeuroLMProcessor.from_pretrained(home / "tuned").save_pretrained(tmp_path / "bare")
    _, headings = checked(write_checkpoint_report(str(tmp_path / "bare"), str(home / "task"), tmp_path / "out"))
    assert "Scores" in headings
    assert "Map of the codes" not in headings


def test_what_does_not_belong_together(home: Path, tmp_path: Path) -> None:
    other = write_vq(tmp_path / "other")
    vq = NeuroLMVQModel.from_pretrained(other)
    vq.encoder.quantizer.codebook.neg_()
    vq.save_pretrained(other)
    with pytest.raises(ValueError, match="other codes than the model"):
        write(home, tmp_path / "out", tokenizer=str(other))
    with pytest.raises(FileNotFoundError):
        write_checkpoint_report(str(home / "tuned"), str(tmp_path / "nowhere"), tmp_path / "out")
    with pytest.raises(ValueError, match=re.escape("holds no model")):
        write_checkpoint_report(str(tmp_path), str(home / "task"), tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""A report of a checkpoint on a prepared set: its codes, its reconstructions, its answers, its training.

`write_checkpoint_report` leaves a folder with one page that needs no other file, and its pictures as PNG files.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import __version__
from .answered_recording import check_decoder
from .answering import Answering, EvaluationSet, check_recipe, open_model, open_set
from .checkpoint_figures import plot_code_map, plot_reliability
from .checkpoints import last_complete_checkpoint
from .codebook_use import code_frequencies, codebook_of, count_codes, on_device, two_dimensions
from .collators import EEGCollator, row_name
from .dataset_card import read_description
from .evaluation import BASELINE, CHANCE, Result, Score, ask, compare, windows_of
from .evaluation_report import TITLES, as_difference, read_evaluation, told_of_models, with_interval
from .figures import (
    perplexity,
    plot_codebook_usage,
    plot_confusion,
    plot_losses,
    plot_probabilities,
    plot_scores,
)
from .metrics import expected_calibration_error
from .page import Html, bullets, paragraph, picture, section, table, write_page
from .processing_neurolm import EEGFeatureExtractor
from .recording_figures import spread
from .stages import bare_language_model
from .starting_models import ARCHITECTURES, architecture_of, describe_source, load_vq
from .storage import load_prepared
from .validation import plot_reconstructed, reconstructed


# Of more windows, so many are read, evenly spread.
WINDOWS_READ = 2000
RECONSTRUCTIONS = 2
LISTED_AT_MOST = 8
ROWS_OF_A_TABLE = 40  # subjects
MAIN_METRIC = "balanced_accuracy"


@dataclass(frozen=True)
class _Given:
    """What a report is of.

    Attributes:
        name: of the checkpoint; source: its folder or Hub id.
        extractor: of the checkpoint; rows: the windows that are read, of of_all there are.
        folder, split: where they are.
        encoder: what gives codes: a neural tokenizer, or a language model's; None where it has no codebook.
        tokenizer: what decodes them; None where there is none.
        answering, asked: a language model, and the windows with what is asked about them; None of a tokenizer.
    """

    name: str
    source: str
    extractor: EEGFeatureExtractor
    rows: Any
    of_all: int
    folder: str
    split: str
    encoder: Any
    tokenizer: Any
    answering: Answering | None = None
    asked: EvaluationSet | None = None


def write_checkpoint_report(
    model: str,
    data: str,
    output: str | Path,
    *,
    split: str = "test",
    tokenizer: str | None = None,
    evaluation: str | Path | None = None,
    training: str | Path | None = None,
    batch_size: int = 32,
    windows_at_most: int = WINDOWS_READ,
) -> Path:
    """Writes a report of a checkpoint: `index.html`, which needs no other file, and the pictures as PNG files.

    Args:
        model: folder or Hub id of a NeuroLM, of an adapter, or of a neural tokenizer.
        data: folder of a prepared set, by the recipe of the model; for a NeuroLM one that asks something.
        output: folder, which is made.
        split: of the set.
        tokenizer: of a NeuroLM: the neural tokenizer that it was made with, which holds the decoder.
        evaluation: folder that `scripts/evaluate_tasks.py` has written about this set: its scores are shown. Without
            it the model is evaluated on the windows that are read.
        training: folder of the training, whose curves are drawn; the model's own where it has checkpoints in it.
        batch_size: windows read at a time.
        windows_at_most: of more windows, so many are read, evenly spread.

    Returns:
        The path of `index.html`.

    Raises:
        ValueError: what `open_model`, `load_vq` and `open_set` refuse; another recipe; an evaluation of other weights
            or windows.
        FileNotFoundError: no such prepared set.
        ImportError: matplotlib, or what an evaluation needs, is missing.
    """
    output = Path(output)
    given = _open(model, data, split, tokenizer, windows_at_most)
    sections = [_data_section(given)]
    if given.answering is not None and given.asked is not None:
        sections += _answer_sections(given, given.answering, given.asked, evaluation, batch_size, output)
    elif evaluation is not None:
        raise ValueError(f"{model} is a neural tokenizer, of which there is no evaluation.")
    sections += [
        *_code_sections(given, batch_size, output),
        _reconstruction_section(given, output),
        _training_section(Path(training or model), training is not None, output),
        _provenance_section(given),
    ]
    lead = f"On {_windows(given)} of the {split} split of {Path(data).name}."
    return write_page(output, f"Checkpoint {given.name}", sections, lead=lead)


def _open(model: str, data: str, split: str, tokenizer: str | None, windows_at_most: int) -> _Given:
    name = Path(model).name
    if _is_tokenizer(model):
        vq, extractor = load_vq(model, architectures=ARCHITECTURES)
        rows = load_prepared(data, split)
        chosen = rows.select(spread(len(rows), windows_at_most).tolist())
        return _Given(name, model, extractor, chosen, len(rows), data, split, vq.eval(), vq)
    answering = open_model(model)
    asked = open_set(f"{data}:{split}")
    check_recipe(asked, answering)
    rows = asked.rows
    asked = dataclasses.replace(asked, rows=rows.select(spread(len(rows), windows_at_most).tolist()))
    language_model = bare_language_model(answering.model)
    decoder = None if tokenizer is None else load_vq(tokenizer)[0].eval()
    if decoder is not None:
        check_decoder(decoder, language_model.eeg_encoder)
    return _Given(
        name=name,
        source=model,
        extractor=answering.processor.feature_extractor,
        rows=asked.rows,
        of_all=len(rows),
        folder=data,
        split=split,
        encoder=language_model if language_model.eeg_encoder.config.has_codebook else None,
        tokenizer=decoder,
        answering=answering,
        asked=asked,
    )


def _is_tokenizer(source: str) -> bool:
    try:
        return architecture_of(source) is not None
    except ValueError:  # an adapter without a config, or nothing, which `open_model` will say
        return False


# Sections --------------------------------------------------------------------------------------------


def _windows(given: _Given) -> str:
    read = len(given.rows)
    return f"{read:,} windows" if read == given.of_all else f"{read:,} of {given.of_all:,} windows, evenly spread"


def _data_section(given: _Given) -> Html:
    preparation, summary = read_description(given.folder)
    facts = [
        ("Prepared set", Path(given.folder).name),
        ("Task", str(preparation["task"])),
        ("Split", given.split),
        ("Windows", _windows(given)),
        ("Subjects in the split", f"{summary['subjects'].get(given.split, 0):,}"),
        ("Fingerprint", str(summary["fingerprint"])[:16]),
    ]
    return section("The windows", table(("What", "Value"), facts, caption="What the checkpoint was read on"))


def _answer_sections(
    given: _Given,
    answering: Answering,
    asked: EvaluationSet,
    evaluation: str | Path | None,
    batch_size: int,
    output: Path,
) -> list[Html]:
    windows = windows_of(asked)
    answers = ask(asked, answering, batch_size=batch_size, written_windows=0)
    if evaluation is None:
        result = compare(asked, windows, {given.name: answers})
        source = f"computed for this report on {_windows(given)}"
    else:
        result = _evaluated(evaluation, given, asked)
        source = f"from {Path(evaluation).name}, on all windows of the split"
    return [
        _scores_section(result, source, output),
        _confusion_section(given, asked, windows.labels, answers.probabilities, output),
        _reliability_section(asked, windows.labels, answers.probabilities, output),
    ]


def _evaluated(folder: str | Path, given: _Given, asked: EvaluationSet) -> Result:
    """What an evaluation found about the model and this set."""
    evaluation = read_evaluation(folder)
    if (name := evaluation.name_of(describe_source(given.source))) is None:
        raise ValueError(
            f"{folder} is an evaluation of {', '.join(evaluation.models)}, of other weights than those of "
            f"{given.source}: evaluate these with scripts/evaluate_tasks.py."
        )
    for result in evaluation.alone(name, name).results:
        if (result.fingerprint, result.split, result.task) == (asked.fingerprint, asked.split, asked.task.name):
            return result
    found = "; ".join(f"{one.task}, {one.split}" for one in evaluation.results)
    raise ValueError(
        f"{folder} holds no result about the {asked.split} split of {asked.folder} as it is now; it has {found}."
    )


def _scores_section(result: Result, source: str, output: Path) -> Html:
    """Of the one model that the result is about."""
    ((name, own),) = result.models.items()
    judged: list[tuple[str, Mapping[str, Score] | None]] = [
        (name, own.scores), (BASELINE, result.baseline), (CHANCE, result.chance),
    ]  # fmt: skip
    who = [(one, scores) for one, scores in judged if scores is not None]
    rows = [(_heading(metric), *(with_interval(scores[metric]) for _, scores in who)) for metric in result.metrics]
    caption = f"Scores, {source}; in brackets 95% intervals over subjects"
    parts = [table(("Metric", *(one for one, _ in who)), rows, caption=caption, numbers=True, bold=1)]
    drawn = [
        (
            "Baseline" if one == BASELINE else one,
            scores[MAIN_METRIC].value,
            (scores[MAIN_METRIC].low, scores[MAIN_METRIC].high),
        )
        for one, scores in who
        if one != CHANCE and MAIN_METRIC in scores and None not in (scores[MAIN_METRIC].value, scores[MAIN_METRIC].low)
    ]
    if drawn:
        figure = plot_scores(drawn, _heading(MAIN_METRIC), 1 / len(result.windows))  # type: ignore[arg-type]
        alt = "; ".join(f"{one} {value:.3f}, {low:.2f} to {high:.2f}" for one, value, (low, high) in drawn)
        parts.append(picture(output, "scores", figure, f"{_heading(MAIN_METRIC)}: {alt}."))
    if own.less_baseline is not None:
        rows = [(_heading(metric), as_difference(own.less_baseline[metric])) for metric in result.metrics]
        caption = "Model less baseline; 95% intervals are of differences within the same draws of subjects: where one "
        caption += "holds 0, these subjects do not tell the two apart"
        parts.append(table(("Metric", "Difference"), rows, caption=caption, numbers=True))
    if notes := [*told_of_models(result), *result.notes]:
        parts.append(bullets(" ".join(note.split()) for note in notes))
    if own.by_subject:
        parts.append(_subjects(result.metrics, own.by_subject))
    return section("Scores", *parts)


def _heading(metric: str) -> str:
    return TITLES[metric][0].upper() + TITLES[metric][1:]


def _subjects(metrics: Sequence[str], by_subject: Sequence[Mapping[str, Any]]) -> Html:
    shown = [by_subject[place] for place in spread(len(by_subject), ROWS_OF_A_TABLE)]
    metric = MAIN_METRIC if MAIN_METRIC in metrics else metrics[0]
    rows = [
        (str(row["subject"]), f"{row['windows']:,}", "–" if row[metric] is None else f"{row[metric]:.3f}")
        for row in shown
    ]
    caption = "Subject by subject"
    if len(shown) < len(by_subject):
        caption += f", {len(shown)} of {len(by_subject)}"
    return table(("Subject", "Windows", _heading(metric)), rows, caption=caption, numbers=True)


def _confusion_section(
    given: _Given,
    asked: EvaluationSet,
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    output: Path,
) -> Html:
    classes, answered = asked.task.classes, probabilities.argmax(axis=1)
    confusion = np.zeros((len(classes), len(classes)))
    np.add.at(confusion, (labels, answered), 1)
    right = ", ".join(
        f"{name} {confusion[place, place]:.0f} of {confusion[place].sum():.0f}" for place, name in enumerate(classes)
    )
    caption = f"{_windows(given)}: counts, and percent of each true answer."
    alt = f"Confusion matrix. Answered right: {right}."
    parts = [picture(output, "confusion", plot_confusion(confusion, classes), alt, caption)]
    if len(classes) == 2:
        figure = plot_probabilities(probabilities[:, 1], labels == 1, (classes[0], classes[1]))
        means = [probabilities[labels == place, 1].mean() if (labels == place).any() else np.nan for place in (0, 1)]
        alt = f"Histograms of the probability of {classes[1]}: its mean is {means[0]:.2f} where the truth is "
        alt += f"{classes[0]} and {means[1]:.2f} where it is {classes[1]}."
        caption = (
            "Humps that stand apart but on one side of the threshold mean that the threshold is off, not the ranking."
        )
        parts.append(picture(output, "probabilities", figure, alt, caption))
    return section("Answers and truth", *parts)


def _reliability_section(
    asked: EvaluationSet, labels: NDArray[np.int64], probabilities: NDArray[np.float64], output: Path
) -> Html:
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    error = expected_calibration_error(labels, probabilities)
    figure = plot_reliability(confidence, right)
    alt = f"Reliability diagram: mean confidence {confidence.mean():.2f}, share right {right.mean():.2f}."
    caption = (
        "Below the dotted line the model is surer than it is right. Windows of one subject are alike: take points of "
        f"few windows lightly. Expected calibration error: {error:.3f}."
    )
    return section("Can the probabilities be believed?", picture(output, "reliability", figure, alt, caption))


def _code_sections(given: _Given, batch_size: int, output: Path) -> list[Html]:
    """How the codes are used, and where they lie."""
    if given.encoder is None:
        said = "The model was saved without the codebook of its tokenizer: there is nothing to tell about its codes."
        return [section("Codebook", paragraph(said))]
    counts = count_codes(given.encoder, given.extractor, given.rows, batch_size)
    used, size = int((counts > 0).sum()), len(counts)
    listed = [
        (str(code), f"{counts[code]:,}", f"{counts[code] / counts.sum():.1%}")
        for code in np.argsort(-counts, kind="stable")[:LISTED_AT_MOST].tolist()
        if counts[code]
    ]
    caption = f"{counts.sum():,} patches of {_windows(given)}. "
    caption += f"{size - used:,} codes of {size:,} are never used there." if used < size else "Every code is used."
    alt = (
        f"Use of the codes, most used first: {used} of {size} used, perplexity {perplexity(counts.astype(float)):.1f}."
    )
    usage = section(
        "Codebook",
        picture(output, "codebook", plot_codebook_usage(counts), alt, caption),
        table(("Code", "Patches", "Share"), listed, caption="The most used codes", numbers=True),
    )
    return [usage, _map_section(given, counts, output)]


def _map_section(given: _Given, counts: NDArray[np.int64], output: Path) -> Html:
    places, shares = two_dimensions(codebook_of(given.encoder))
    caption = "Each mark is a code, where its vector lies along the two principal components of the codebook; the "
    caption += "larger, the more often it is used."
    hertz = None
    if given.tokenizer is None:
        caption += " Colours would need the neural tokenizer, which decodes."
    else:
        hertz, highest = code_frequencies(given.tokenizer, given.extractor, counts)
        caption += " Colour and shape tell the frequency at which the spectrum that a code decodes to stands out most "
        caption += f"from the mean of all used codes, up to {highest} Hz."
    figure = plot_code_map(places, counts, hertz, shares)
    alt = f"Map of {len(counts)} codes in two dimensions, which hold {sum(shares):.0%} of their variance."
    return section("Map of the codes", picture(output, "code-map", figure, alt, caption))


@torch.no_grad()
def _reconstruction_section(given: _Given, output: Path) -> Html:
    heading = "Reconstructions"
    if given.tokenizer is None:
        said = "Not drawn: a NeuroLM holds no decoder. Give the neural tokenizer that it was made with."
        return section(heading, paragraph(said))
    parts, collator = [], EEGCollator(given.extractor)
    places = spread(len(given.rows) + 2, RECONSTRUCTIONS + 2)[1:-1] - 1
    for number, place in enumerate(places.tolist(), 1):
        row = given.rows[place]
        outputs = given.tokenizer(**on_device(collator([row]), given.tokenizer))
        channels = list(row["channels"])
        signal, drawn = reconstructed(outputs, len(channels))
        likeness = np.mean(
            [np.corrcoef(*pair)[0, 1] for pair in zip(signal, drawn, strict=True) if min(map(np.std, pair)) > 0]
        )
        figure = plot_reconstructed(outputs, channels)
        what = "Signal" if "raw" in outputs else "Amplitude spectrum"
        alt = f"{what} and reconstruction; mean correlation over {len(channels)} channels {likeness:.2f}."
        parts.append(picture(output, f"reconstruction-{number}", figure, alt, f"{row_name(row)}, z-scored."))
    return section(heading, *parts)


def _training_section(folder: Path, wanted: bool, output: Path) -> Html:
    """Curves of a training, from the state in its last checkpoint."""
    heading = "Training"
    last = last_complete_checkpoint(folder) if folder.is_dir() else None
    file = (folder if last is None else last) / "trainer_state.json"
    if not file.is_file():
        if wanted:
            raise ValueError(f"{folder} is no training's folder: there is no trainer_state.json in it.")
        return section(heading, paragraph("No curves: there is no trainer_state.json. Give the training's folder."))
    try:
        history = json.loads(file.read_text(encoding="utf-8"))["log_history"]
        curves = _curves(history)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no state of a Trainer: {error!r}.") from error
    if not curves:
        return section(heading, paragraph("No curves: nothing was logged."))
    ends = [
        f"{name} {values[0]:.3g} to {values[-1]:.3g}"
        for losses in curves.values()
        for name, (_, values) in losses.items()
    ]
    alt = f"Losses by step: {', '.join(ends)}."
    return section(heading, picture(output, "training", plot_losses(curves), alt, "Losses as they were logged."))


def _curves(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """Panel -> loss -> steps and values."""
    panels: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for entry in history:
        for key, value in entry.items():
            # the summary at a training's end is the mean of what was logged
            if not key.endswith("loss") or key == "train_loss" or not isinstance(value, int | float):
                continue
            panel = "Validation" if key.startswith("eval_") else "Training"
            steps, values = panels.setdefault(panel, {}).setdefault(key.removeprefix("eval_"), ([], []))
            steps.append(int(entry["step"]))
            values.append(float(value))
    return panels


def _provenance_section(given: _Given) -> Html:
    config = given.answering.config if given.answering is not None else given.encoder.config
    provenance = (getattr(config, "provenance", None) or {}) if config is not None else {}
    facts = [("Checkpoint", given.name if Path(given.source).is_dir() else given.source)]
    facts += [
        (key.replace("_", " ").capitalize(), _plain(provenance[key]))
        for key in ("made_by", "recipe", "steps", "epochs")
        if key in provenance
    ]
    data = provenance.get("data")
    for one in data if isinstance(data, list) else []:
        if isinstance(one, dict) and "task" in one:
            facts.append(
                (
                    "Trained on",
                    f"{one['task']}, {one.get('windows', '?')} windows of {len(one.get('subjects', []))} subjects",
                )
            )
    facts.append(("This page by", f"neurolm_hf {__version__}"))
    said = "Research software: nothing here is a medical device or a diagnosis."
    return section("How this was made", table(("What", "Value"), facts), paragraph(said))


def _plain(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

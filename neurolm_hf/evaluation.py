"""How well models answer: the windows of prepared sets, beside the plain baseline and chance, with intervals.

Whatever gives each window a probability for each answer is judged by `judge`: a language model, a classifier, the
baseline, a guesser. Values are computed through the `evaluate` library by `answer_metrics`, intervals by drawing
subjects.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils.logging import tqdm

from .answering import Answering, EvaluationSet
from .baseline import REGULARISATION, band_power_features, logistic_probabilities
from .metrics import (
    ANSWER_METRICS,
    UndefinedMetricError,
    answer_metric,
    draws_over_subjects,
    interval_of_draws,
    metrics_of,
)
from .pipeline_neurolm import parse_answer
from .published_protocol import Protocol
from .scoring import true_class
from .storage import batches_of, load_prepared, row_signal
from .written_answers import NO_ANSWER, reference_class, reference_scores, write_answers


# What `evaluate.load` opens.
ANSWER_METRICS_MODULE = str(Path(__file__).with_name("answer_metrics.py"))
BASELINE = "log band power, logistic regression"
CHANCE = "chance"
# Rows whose band power is computed at a time: signals of a whole split would not fit into memory.
ROWS_AT_A_TIME = 256
# Unreadable texts that a result quotes.
EXAMPLES = 5


@dataclass(frozen=True)
class Score:
    """A metric's value, and its 95% interval over subjects.

    Attributes:
        value: None where the windows leave the metric undefined.
        low, high: None where there is no interval: one subject only, or no draw of subjects defines the metric.
        undefined_draws: of 1000 draws of subjects, those that leave the metric undefined; the interval is that of the
            others.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    undefined_draws: int = 0


@dataclass(frozen=True)
class Windows:
    """What is known of the windows that are answered.

    Attributes:
        labels: (windows,) true classes.
        subjects: (windows,) names.
        classes: the answers, class by class.
    """

    labels: NDArray[np.int64]
    subjects: NDArray[np.str_]
    classes: tuple[str, ...]

    @property
    def shares(self) -> NDArray[np.float64]:
        """How frequent each answer is (classes,)."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return counts / len(self.labels)


@dataclass(frozen=True)
class Judgement:
    """Metrics of some windows, and of draws of their subjects.

    Attributes:
        values: name of a metric -> value, None where the windows leave it undefined.
        draws: name -> (draws,) its value in each draw of subjects, NaN where undefined. Metrics without a value are
            missing, and all of them where there is one subject only.
    """

    values: Mapping[str, float | None]
    draws: Mapping[str, NDArray[np.float64]]

    @property
    def scores(self) -> dict[str, Score]:
        """Values with their intervals."""
        return {name: self._score(name) for name in self.values}

    def less(self, other: "Judgement") -> "Judgement":
        """The differences to another judgement of the same windows: within each draw, subject for subject."""
        pairs = {name: (value, other.values[name]) for name, value in self.values.items()}
        values = {name: None if a is None or b is None else a - b for name, (a, b) in pairs.items()}
        common = self.draws.keys() & other.draws.keys()
        return Judgement(values, {name: self.draws[name] - other.draws[name] for name in common})

    def _score(self, name: str) -> Score:
        value, draws = self.values[name], self.draws.get(name)
        if draws is None:
            return Score(value)
        undefined = int(np.isnan(draws).sum())
        try:
            return Score(value, *interval_of_draws(draws), undefined)
        except UndefinedMetricError:
            return Score(value, undefined_draws=undefined)


@dataclass(frozen=True)
class WrittenAnswers:
    """What the model wrote by itself.

    Attributes:
        windows: how many it was asked about.
        unparseable: the share of texts that are none of the answers.
        examples: some of these texts.
    """

    windows: int
    unparseable: float
    examples: list[str]


@dataclass(frozen=True)
class Answers:
    """What a model says about the windows of a set.

    Attributes:
        probabilities: (windows, answers), each row sums to one; with the reference's scoring what it takes for them.
        written: None where the model was not asked to write.
        doubts: why its answers may mean nothing.
    """

    probabilities: NDArray[np.float64]
    written: WrittenAnswers | None
    doubts: list[str]


@dataclass(frozen=True)
class ModelResult:
    """What came out about one model.

    Attributes:
        scores: name of a metric -> score.
        less_baseline: the model's score less the baseline's; its intervals are of differences within the same draws of
            subjects. None without baseline.
        first_less: the score of the first model less this one's, likewise; None for the first model itself.
        by_subject: an object a subject: `subject`, `windows`, and the value of each metric, None where the subject's
            windows leave it undefined.
        written, doubts: as of `Answers`.
        notes: what else a reader must know of its scores.
    """

    scores: dict[str, Score]
    less_baseline: dict[str, Score] | None
    first_less: dict[str, Score] | None
    by_subject: list[dict[str, Any]]
    written: WrittenAnswers | None
    doubts: list[str]
    notes: list[str]


@dataclass(frozen=True)
class Result:
    """What came out about one split of one prepared set.

    Attributes:
        folder, split, task, question, fingerprint: which windows were asked about, and what.
        windows: their number by answer.
        subjects: number of subjects.
        metrics: names, in the order of the tables.
        models: name -> what came out about it, in the order in which they were given.
        baseline, chance: name of a metric -> score. There is no baseline where none can be fitted, which the notes
            say. Chance knows how frequent each answer is among these windows, and nothing else.
        baseline_by_subject: as of `ModelResult`; None without baseline, and in files of before it was there.
        protocol: how the windows compare with those that published figures are of.
        published: figures of a publication whose protocol this is.
        notes: what a reader must know of the windows and of the baseline.
    """

    folder: str
    split: str
    task: str
    question: str
    fingerprint: str
    windows: dict[str, int]
    subjects: int
    metrics: list[str]
    models: dict[str, ModelResult]
    baseline: dict[str, Score] | None
    baseline_by_subject: list[dict[str, Any]] | None
    chance: dict[str, Score]
    protocol: Protocol
    published: list["PublishedFigures"]
    notes: list[str]


@dataclass(frozen=True)
class PublishedFigures:
    """Figures of a publication, to stand beside ours where the protocol is the same.

    Attributes:
        name: of the model.
        source: where the figures are printed.
        task: name of one of this package's tasks.
        metrics: name, as in `ANSWER_METRICS`, -> value.
    """

    name: str
    source: str
    task: str
    metrics: Mapping[str, float]

    def __post_init__(self) -> None:
        if unknown := sorted(self.metrics.keys() - set(ANSWER_METRICS)):
            raise ValueError(f"metrics has {', '.join(unknown)}; there are {', '.join(ANSWER_METRICS)}.")


def evaluate_set(
    given: EvaluationSet,
    models: Mapping[str, Answering],
    *,
    as_reference: bool = False,
    batch_size: int = 32,
    written_windows: int = 256,
    published: Sequence[PublishedFigures] = (),
) -> Result:
    """Asks models about the windows of a set, and judges them beside the plain baseline and chance.

    Args:
        given: from `open_set`.
        models: name -> model, from `open_any`; `check_set` has found each of them fit for the set.
        as_reference, batch_size, written_windows: as in `ask`.
        published: as in `compare`.

    Raises:
        ValueError: rows that cannot be used or that have none of the task's answers, or a classifier that is to be
            scored as the reference does.
        ImportError: evaluate, scikit-learn or datasets is missing.
    """
    for answering in models.values():
        if as_reference and answering.kind != "answers":
            raise ValueError(
                f"{answering.source} is a classifier, which writes no answers that could be scored as NeuroLM's "
                "reference code does: score probabilities, or leave it out."
            )
    windows = windows_of(given)
    answers = {
        name: ask(given, answering, as_reference=as_reference, batch_size=batch_size, written_windows=written_windows)
        for name, answering in models.items()
    }
    return compare(given, windows, answers, as_reference=as_reference, published=published)


def ask(
    given: EvaluationSet,
    answering: Answering,
    *,
    as_reference: bool = False,
    batch_size: int = 32,
    written_windows: int = 256,
) -> Answers:
    """Asks a model about the windows of a set.

    Args:
        given: from `open_set`.
        answering: of the recipe of the set.
        as_reference: as NeuroLM's reference code does: what the model writes about every window is read by word
            position, and a text without an answer counts as an answer (`written_answers`). Otherwise the probabilities
            are of the allowed answers. Not of a classifier.
        batch_size: windows read at a time.
        written_windows: how many the model is also asked to write about, evenly spread over the split; 0: none. A
            classifier writes nothing.

    Raises:
        ValueError: rows that cannot be used.
    """
    doubts = answering.doubts(given)
    if as_reference:
        probabilities, written = _reference_answers(given, answering, batch_size)
        return Answers(probabilities, written, doubts)
    title = f"{Path(answering.source).name}: {given.task.name}, {given.split}"
    scored = answering.score(given.rows, given.task, batch_size)
    scores = [one.double().cpu() for one in tqdm(scored, total=len(given.rows), desc=title, unit="window")]
    probabilities = torch.stack(scores).softmax(dim=1).numpy()
    writes = answering.kind == "answers" and written_windows > 0
    return Answers(
        probabilities, _written_answers(given, answering, batch_size, written_windows) if writes else None, doubts
    )


def compare(
    given: EvaluationSet,
    windows: Windows,
    answers: Mapping[str, Answers],
    *,
    as_reference: bool = False,
    published: Sequence[PublishedFigures] = (),
) -> Result:
    """Judges what models have said about the same windows, beside the plain baseline and chance.

    Args:
        given: what they were asked about.
        windows: the truth about it, from `windows_of`.
        answers: name -> what a model said; the differences between models are to the first of them.
        as_reference: they were asked so: the task's own metrics, of hard answers. Otherwise all metrics come from the
            probabilities.
        published: figures that are shown where the set is the published one, as far as it can tell, and is scored as
            there.

    Raises:
        ImportError: evaluate, scikit-learn or datasets is missing.
    """
    task, names = given.task, metrics_of(len(given.task.classes))
    notes = list(given.notes)
    if as_reference:
        names = [name for name in names if name in task.metrics]
        notes.append("All scores are of hard answers, those of the baseline too.")
    if len(np.unique(windows.subjects)) == 1:
        notes.append("The windows are of one subject: there are no intervals over subjects.")
    plain, why_not = baseline_of_set(given, windows)
    if plain is None:
        notes.append(f"There is no baseline: {why_not}")
    elif as_reference:
        plain = np.eye(plain.shape[1])[plain.argmax(axis=1)]
    judged = {name: judge(windows, one.probabilities, names) for name, one in answers.items()}
    baseline = None if plain is None else judge(windows, plain, names)
    first = next(iter(judged))
    models = {
        name: ModelResult(
            scores=own.scores,
            less_baseline=None if baseline is None else own.less(baseline).scores,
            first_less=None if name == first else judged[first].less(own).scores,
            by_subject=_by_subject(windows, answers[name].probabilities, names),
            written=answers[name].written,
            doubts=answers[name].doubts,
            notes=_notes_of_scores(own.scores),
        )
        for name, own in judged.items()
    }
    counts = np.bincount(windows.labels, minlength=len(task.classes)).tolist()
    protocol = given.protocol
    same_protocol = as_reference and not protocol.departures
    return Result(
        folder=given.folder,
        split=given.split,
        task=task.name,
        question=str(task.question),
        fingerprint=given.fingerprint,
        windows=dict(zip(task.classes, counts, strict=True)),
        subjects=len(np.unique(windows.subjects)),
        metrics=names,
        models=models,
        baseline=None if baseline is None else baseline.scores,
        baseline_by_subject=None if plain is None else _by_subject(windows, plain, names),
        chance=judge(windows, np.tile(windows.shares, (len(windows.labels), 1)), names).scores,
        protocol=protocol,
        published=[one for one in published if same_protocol and one.task == task.name],
        notes=notes,
    )


def windows_of(given: EvaluationSet) -> Windows:
    """The truth about the windows of a set, in their order.

    Raises:
        ValueError: a row without one of the task's answers.
    """
    told = given.rows.select_columns(["answer", "subject"])
    rows = [told[index] for index in range(len(told))]
    labels = np.array([true_class(given.task, row) for row in rows])
    return Windows(labels, np.array([str(row["subject"]) for row in rows]), given.task.classes)


def judge(windows: Windows, probabilities: NDArray[np.floating], names: Sequence[str]) -> Judgement:
    """Judges whatever has given each window a probability for each answer.

    Args:
        windows: the truth. Of the same windows all judgements draw the same subjects.
        probabilities: (windows, answers)
        names: of `metrics.ANSWER_METRICS`.

    Raises:
        ValueError: shapes that do not fit, or a metric that is not for so many answers.
        ImportError: evaluate is missing.
    """
    values = _values(windows.labels, probabilities, names)
    draws: dict[str, NDArray[np.float64]] = {}
    if len(np.unique(windows.subjects)) > 1:
        for name in (name for name, value in values.items() if value is not None):
            metric, of_windows = answer_metric(name, probabilities)
            draws[name] = draws_over_subjects(metric, windows.labels, of_windows, windows.subjects)
    return Judgement(values, draws)


def _values(
    labels: NDArray[np.int64], probabilities: NDArray[np.floating], names: Sequence[str]
) -> dict[str, float | None]:
    """Metrics through `evaluate`; None for what these windows leave undefined."""
    given = {"predictions": probabilities.tolist(), "references": labels.tolist()}
    values: dict[str, float | None] = {}
    for name in names:
        value = _metric_module(name).compute(**given)[name]
        values[name] = None if np.isnan(value) else value
    return values


@functools.cache
def _metric_module(name: str) -> Any:
    """What `evaluate` makes of our module for a metric, opened once for model, baseline and chance."""
    try:
        import evaluate
    except ImportError as error:
        raise ImportError('Metrics need evaluate: pip install "neurolm_hf[evaluation]"', name="evaluate") from error
    return evaluate.load(ANSWER_METRICS_MODULE, name, keep_in_memory=True)


def _reference_answers(
    given: EvaluationSet, answering: Answering, batch_size: int
) -> tuple[NDArray[np.float64], WrittenAnswers]:
    """The scores that the reference gives the windows in place of probabilities, and what was written."""
    task = given.task
    texts = write_answers(answering.model, answering.processor, given.rows, task, batch_size, as_reference=True)
    classes = [reference_class(task, text) for text in texts]
    failed = [text for text, found in zip(texts, classes, strict=True) if found == NO_ANSWER]
    return reference_scores(task, classes), _summarized(failed, len(texts))


def _written_answers(given: EvaluationSet, answering: Answering, batch_size: int, wanted: int) -> WrittenAnswers:
    """What the model writes about some windows, evenly spread over the split."""
    places = np.linspace(0, len(given.rows) - 1, min(wanted, len(given.rows))).round().astype(int)
    rows = given.rows.select(places.tolist())
    texts = write_answers(answering.model, answering.processor, rows, given.task, batch_size)
    return _summarized([text for text in texts if parse_answer(text, given.task.classes) is None], len(texts))


def _summarized(failed: Sequence[str], windows: int) -> WrittenAnswers:
    return WrittenAnswers(windows, len(failed) / windows, list(dict.fromkeys(failed))[:EXAMPLES])


def baseline_of_set(given: EvaluationSet, windows: Windows) -> tuple[NDArray[np.float64] | None, str | None]:
    """What the baseline says (windows, answers), fitted on the set's training split; or why there is none.

    Args:
        windows: those of the set.
    """
    if given.split == "train":
        return None, "it would be judged on the windows that it is fitted on."
    try:
        train = load_prepared(given.folder, "train")
        train_features, train_montage = _band_power(train)
        test_features, montage = _band_power(given.rows)
        if train_montage != montage:
            raise ValueError("windows of the training split have other channels, or another length.")
        fitted = logistic_probabilities(
            train_features, np.asarray(train["label"]), test_features, strength=REGULARISATION
        )
    except ValueError as error:
        return None, str(error)
    # answers that no training window has come last, for their classes must run from 0 up
    missing = len(windows.classes) - fitted.shape[1]
    return np.pad(fitted, ((0, 0), (0, missing))), None


def _band_power(rows: Any) -> tuple[NDArray[np.float64], tuple[tuple[str, ...], int]]:
    """Features (windows, channels x bands) of windows that must have the same channels and samples, and these."""
    features: list[NDArray[np.float64]] = []
    montage: Any = None
    for part in batches_of(rows, ROWS_AT_A_TIME):
        signals = [row_signal(row) for row in part]
        found = {(tuple(row["channels"]), signal.shape[1]) for row, signal in zip(part, signals, strict=True)}
        montage = found.pop() if montage is None else montage
        if found - {montage}:
            raise ValueError("windows differ in their channels or in their length.")
        features.append(band_power_features(np.stack(signals), float(part[0]["sampling_rate"])))
    return np.concatenate(features), montage


def _by_subject(windows: Windows, probabilities: NDArray[np.float64], names: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for subject in np.unique(windows.subjects):
        own = windows.subjects == subject
        row: dict[str, Any] = {"subject": str(subject), "windows": int(own.sum())}
        for name in names:
            metric, of_windows = answer_metric(name, probabilities[own])
            try:
                row[name] = metric(windows.labels[own], of_windows)
            except UndefinedMetricError:
                row[name] = None
        rows.append(row)
    return rows


def _notes_of_scores(scores: Mapping[str, Score]) -> list[str]:
    """What is undefined, and which intervals are not of all draws."""
    notes = []
    if undefined := [name for name, score in scores.items() if score.value is None]:
        notes.append(f"These windows leave {', '.join(undefined)} undefined, for they are of one class only.")
    for name, score in scores.items():
        if score.undefined_draws:
            notes.append(
                f"{name} is undefined in {score.undefined_draws} of 1000 draws of subjects; its interval is that of "
                "the others."
            )
    return notes

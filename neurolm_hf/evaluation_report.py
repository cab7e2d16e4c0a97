"""The results of an evaluation as files: JSON with everything, Markdown to read, metadata for a model card."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from . import __version__
from .dataset_card import markdown_table, plain_text
from .evaluation import BASELINE, CHANCE, PublishedFigures, Result, Score, WrittenAnswers
from .prepared_set import to_json
from .published_protocol import Protocol
from .storage import write_text
from .typed_json import read_dataclass


# As the pipeline of these answers is called.
TASK_TYPE = "eeg-question-answering"
TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "cohen_kappa": "Cohen's kappa",
    "f1_weighted": "weighted F1",
    "roc_auc": "AUROC",
    "pr_auc": "AUC-PR",
    "expected_calibration_error": "calibration error",
}
DIFFERENCE = "difference: model less baseline"
UNDEFINED = "–"


@dataclass(frozen=True)
class Evaluation:
    """Everything that an evaluation found.

    Attributes:
        name: of the model.
        source: which weights these are (`starting_models.describe_source`).
        as_reference: whether answers were scored as NeuroLM's reference code does.
        results: one a split of a prepared set.
    """

    name: str
    source: dict[str, str]
    as_reference: bool
    results: list[Result]

    def write(self, folder: str | Path) -> None:
        """Writes `results.json`, `results.md` and `model-index.yaml` into a folder, which is made."""
        folder = Path(folder)
        write_text(folder / "results.json", to_json({"neurolm_hf": __version__, **asdict(self)}))
        write_text(folder / "results.md", self.markdown())
        write_text(folder / "model-index.yaml", self.card_data().to_yaml() + "\n")

    def markdown(self) -> str:
        """Tables with intervals, subject by subject too, and what must be said about them."""
        parts = [f"# Answers of {plain_text(self.name)}\n\n{self._how()}"]
        for result in self.results:
            parts += [*self._scores(result, "##"), *self._by_subject(result)]
        return "\n".join(parts)

    def summary(self) -> str:
        """The same for a section of a card: nothing about single subjects."""
        return "\n".join([self._how(), *(part for result in self.results for part in self._scores(result, "###"))])

    def _how(self) -> str:
        """What the figures are, and their intervals."""
        how = "Metrics are of the probabilities that the model gives the allowed answers."
        if self.as_reference:
            how = (
                "Scored as NeuroLM's reference code does: hard answers that the model writes, read by word position; "
                "a text without an answer counts as an answer. Compare with published figures only."
            )
        intervals = "In brackets: 95% intervals, drawing whole subjects with replacement, 1000 times."
        if any(result.difference is not None for result in self.results):
            intervals += f" {_DIFFERENCE_IS}"
        return f"{how} {intervals} {_CHANCE_KNOWS}\n"

    def card_data(self) -> ModelCardData:
        """The model's own scores as the `model-index` of a model card."""
        how = " (scored as the reference does)" if self.as_reference else ""
        return ModelCardData(
            model_name=self.name,
            eval_results=[
                EvalResult(
                    task_type=TASK_TYPE,
                    task_name="EEG question answering",
                    dataset_type=result.task.lower(),
                    dataset_name=result.task,
                    dataset_split=result.split,
                    dataset_revision=result.fingerprint,
                    metric_type=name,
                    metric_name=TITLES[name] + how,
                    metric_value=score.value,
                )
                for result in self.results
                for name, score in result.model.items()
                if score.value is not None
            ],
        )

    def _scores(self, result: Result, level: str) -> list[str]:
        """Markdown of one result under a heading of a level: scores, notes, what was written."""
        head = ["", *(TITLES[name] for name in result.metrics)]
        given = {plain_text(self.name): result.model, BASELINE: result.baseline}
        rows = [[who, *map(with_interval, scores.values())] for who, scores in given.items() if scores is not None]
        if result.difference is not None:
            rows.append([DIFFERENCE, *map(as_difference, result.difference.values())])
        rows.append([CHANCE, *map(with_interval, result.chance.values())])
        for one in result.published:
            figures = [f"{one.metrics[name]:.3f}" if name in one.metrics else UNDEFINED for name in result.metrics]
            rows.append([plain_text(f"{one.name}, published ({one.source})"), *figures])
        counts = ", ".join(f"{plain_text(answer)} {count:,}" for answer, count in result.windows.items())
        windows = sum(result.windows.values())
        title = f"{level} {plain_text(result.task)}, {result.split}: {windows:,} windows of {result.subjects} subjects"
        asked = f"> {plain_text(result.question)}\n\nTrue answers: {counts}. {result.protocol}"
        parts = [f"{title}\n\n{asked}\n", markdown_table(head, rows)]
        lines = [*map(_one_line, result.notes), *self._about_writing(result)]
        if lines:
            parts.append("".join(f"- {line}\n" for line in lines))
        return parts

    def _by_subject(self, result: Result) -> list[str]:
        head = ["subject", "windows", *(TITLES[name] for name in result.metrics)]
        of_subjects = [
            [plain_text(str(row["subject"])), f"{row['windows']:,}", *(_figure(row[name]) for name in result.metrics)]
            for row in result.by_subject
        ]
        return [f"{plain_text(self.name)}, subject by subject:\n", markdown_table(head, of_subjects)]

    def _about_writing(self, result: Result) -> list[str]:
        if result.written is None:
            return []
        written = result.written
        line = f"Left to write by itself about {written.windows:,} windows, the model wrote texts of which "
        line += f"{written.unparseable:.1%} are none of the answers"
        quoted = ", ".join(json.dumps(text, ensure_ascii=False) for text in written.examples)
        return [line + (f", such as {quoted}." if quoted else ".")]


def read_evaluation(folder: str | Path) -> Evaluation:
    """What `Evaluation.write` has written.

    Raises:
        ValueError: the folder has no `results.json`, or one of something else.
    """
    file = Path(folder) / "results.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no results: scripts/evaluate_tasks.py writes a results.json.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        results = [_read_result(one) for one in content["results"]]
        return Evaluation(content["name"], content["source"], content["as_reference"], results)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no evaluation of this package: {error!r}.") from error


def _read_result(content: Mapping[str, Any]) -> Result:
    """A result as `asdict` left it."""
    scores = {
        name: None if content[name] is None else {metric: Score(**score) for metric, score in content[name].items()}
        for name in ("model", "baseline", "difference", "chance")
    }
    protocol = Protocol(**content["protocol"])
    written = None if content["written"] is None else WrittenAnswers(**content["written"])
    published = [PublishedFigures(**one) for one in content["published"]]
    return Result(**{**content, **scores, "written": written, "protocol": protocol, "published": published})


def read_published(path: str | Path) -> list[PublishedFigures]:
    """Published figures from a JSON file: a list of objects with the attributes of `PublishedFigures`.

    Raises:
        ValueError: the file is not such a list; the message says where.
        FileNotFoundError: there is no such file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, list):
        raise ValueError(f"{path} must hold a list of objects, one a published model and task.")
    return [read_dataclass(PublishedFigures, one, f"{path}: [{place}]") for place, one in enumerate(content)]


_DIFFERENCE_IS = (
    "The difference is taken within each draw, on the same subjects: where its interval holds 0, these subjects do "
    "not tell model and baseline apart."
)
_CHANCE_KNOWS = "Chance always gives each answer the share of windows that it is true of."


def with_interval(score: Score) -> str:
    """A score as tables show it."""
    interval = "" if score.low is None or score.high is None else f" ({score.low:.2f} to {score.high:.2f})"
    return _figure(score.value) + interval


def as_difference(score: Score) -> str:
    """A difference of scores as tables show it, with its sign."""
    interval = "" if score.low is None or score.high is None else f" ({score.low:+.2f} to {score.high:+.2f})"
    return (UNDEFINED if score.value is None else f"{score.value:+.3f}") + interval


def _figure(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.3f}"


def _one_line(text: str) -> str:
    return " ".join(text.split())

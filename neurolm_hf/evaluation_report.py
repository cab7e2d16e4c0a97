"""The results of an evaluation as files: JSON with everything, Markdown to read, metadata for a model card."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from . import __version__
from .dataset_card import markdown_table, plain_text
from .evaluation import BASELINE, CHANCE, ModelResult, PublishedFigures, Result, Score, WrittenAnswers
from .model_folder import Kind
from .prepared_set import to_json
from .published_protocol import Protocol
from .storage import write_text
from .typed_json import read_dataclass


# Type and name of what a model does; the first is what the pipeline of answers is called.
TASK_TYPES = {
    "answers": ("eeg-question-answering", "EEG question answering"),
    "classifier": ("eeg-classification", "EEG classification"),
}
TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "cohen_kappa": "Cohen's kappa",
    "f1_weighted": "weighted F1",
    "roc_auc": "AUROC",
    "pr_auc": "AUC-PR",
    "expected_calibration_error": "calibration error",
}
UNDEFINED = "–"


@dataclass(frozen=True)
class EvaluatedModel:
    """A model that was evaluated.

    Attributes:
        kind: `answers` of a language model, `classifier`.
        source: which weights these are (`starting_models.describe_source`).
    """

    kind: Kind
    source: dict[str, str]


@dataclass(frozen=True)
class Evaluation:
    """Everything that an evaluation found.

    Attributes:
        models: name -> model, the first one before those that it is compared with.
        as_reference: whether answers were scored as NeuroLM's reference code does.
        results: one a split of a prepared set, each with all of the models.
    """

    models: dict[str, EvaluatedModel]
    as_reference: bool
    results: list[Result]

    def write(self, folder: str | Path) -> None:
        """Writes `results.json`, `results.md` and `model-index.yaml` into a folder, which is made."""
        folder = Path(folder)
        write_text(folder / "results.json", to_json({"neurolm_hf": __version__, **asdict(self)}))
        write_text(folder / "results.md", self.markdown())
        write_text(folder / "model-index.yaml", self.card_data().to_yaml() + "\n")

    def name_of(self, source: Mapping[str, str]) -> str | None:
        """What these weights are called here, wherever their folder lies now; None if they were not evaluated.

        Args:
            source: what `starting_models.describe_source` says of them.
        """
        for name, model in self.models.items():
            if all(model.source.get(key) == value for key, value in source.items() if key != "folder"):
                return name
        return None

    def alone(self, name: str, title: str) -> "Evaluation":
        """What was found about one of the models, under a name for it, and nothing about those beside it."""
        results = [
            replace(result, models={title: replace(result.models[name], first_less=None)}) for result in self.results
        ]
        return Evaluation({title: self.models[name]}, self.as_reference, results)

    def markdown(self) -> str:
        """Tables with intervals, subject by subject too, and what must be said about them."""
        parts = [f"# Answers of {', '.join(map(plain_text, self.models))}\n\n{self._how()}"]
        for result in self.results:
            parts += [*self._scores(result, "##"), *self._by_subject(result)]
        return "\n".join(parts)

    def summary(self) -> str:
        """The same for a section of a card: nothing about single subjects."""
        return "\n".join([self._how(), *(part for result in self.results for part in self._scores(result, "###"))])

    def _how(self) -> str:
        """What the figures are, and their intervals."""
        if self.as_reference:
            how = (
                "Scored as NeuroLM's reference code does: hard answers that the model writes, read by word position; "
                "a text without an answer counts as an answer. Compare with published figures only."
            )
        else:
            kinds = {model.kind for model in self.models.values()}
            of = {
                "answers": "a language model gives the allowed answers",
                "classifier": "a classifier gives its classes",
            }
            given = " and ".join(words for kind, words in of.items() if kind in kinds)
            how = f"Metrics are of the probabilities that {given}."
        intervals = "In brackets: 95% intervals, drawing whole subjects with replacement, 1000 times."
        if len(self.models) > 1 or any(result.baseline is not None for result in self.results):
            intervals += f" {_DIFFERENCE_IS}"
        return f"{how} {intervals} {_CHANCE_KNOWS}\n"

    def card_data(self) -> ModelCardData:
        """The first model's own scores as the `model-index` of its card."""
        how = " (scored as the reference does)" if self.as_reference else ""
        name, model = next(iter(self.models.items()))
        task_type, task_name = TASK_TYPES[model.kind]
        return ModelCardData(
            model_name=name,
            eval_results=[
                EvalResult(
                    task_type=task_type,
                    task_name=task_name,
                    dataset_type=result.task.lower(),
                    dataset_name=result.task,
                    dataset_split=result.split,
                    dataset_revision=result.fingerprint,
                    metric_type=metric,
                    metric_name=TITLES[metric] + how,
                    metric_value=score.value,
                )
                for result in self.results
                for metric, score in result.models[name].scores.items()
                if score.value is not None
            ],
        )

    def _scores(self, result: Result, level: str) -> list[str]:
        """Markdown of one result under a heading of a level: scores, differences, notes, what was written."""
        head = ["", *(TITLES[name] for name in result.metrics)]
        given = {plain_text(name): one.scores for name, one in result.models.items()}
        if result.baseline is not None:
            given[BASELINE] = result.baseline
        rows = [[who, *map(with_interval, scores.values())] for who, scores in given.items()]
        rows += [[who, *map(as_difference, scores.values())] for who, scores in differences(result).items()]
        rows.append([CHANCE, *map(with_interval, result.chance.values())])
        for one in result.published:
            figures = [f"{one.metrics[name]:.3f}" if name in one.metrics else UNDEFINED for name in result.metrics]
            rows.append([plain_text(f"{one.name}, published ({one.source})"), *figures])
        counts = ", ".join(f"{plain_text(answer)} {count:,}" for answer, count in result.windows.items())
        windows = sum(result.windows.values())
        title = f"{level} {plain_text(result.task)}, {result.split}: {windows:,} windows of {result.subjects} subjects"
        asked = f"> {plain_text(result.question)}\n\nTrue answers: {counts}. {result.protocol}"
        parts = [f"{title}\n\n{asked}\n", markdown_table(head, rows)]
        if lines := [*result.notes, *told_of_models(result), *_about_writing(result)]:
            parts.append("".join(f"- {_one_line(line)}\n" for line in lines))
        return parts

    def _by_subject(self, result: Result) -> list[str]:
        """One table: of each subject a row for each model and for the baseline, so that they stand together."""
        given = {plain_text(name): one.by_subject for name, one in result.models.items()}
        if result.baseline_by_subject is not None:
            given["baseline"] = result.baseline_by_subject
        several = len(given) > 1
        head = ["subject", "windows", *(["of"] if several else []), *(TITLES[name] for name in result.metrics)]
        of_subjects = [
            [
                plain_text(str(row["subject"])),
                f"{row['windows']:,}",
                *([who] if several else []),
                *(_figure(row[metric]) for metric in result.metrics),
            ]
            for of_subject in zip(*given.values(), strict=True)
            for who, row in zip(given, of_subject, strict=True)
        ]
        return ["Subject by subject:\n", markdown_table(head, of_subjects)]


def differences(result: Result) -> dict[str, dict[str, Score]]:
    """What a table calls a difference -> its scores: each model less the baseline, the first model less each other."""
    names = {name: plain_text(name) for name in result.models}
    first = next(iter(names.values()))
    found = {
        f"difference: {names[name]} less baseline": one.less_baseline
        for name, one in result.models.items()
        if one.less_baseline is not None
    }
    found |= {
        f"difference: {first} less {names[name]}": one.first_less
        for name, one in result.models.items()
        if one.first_less is not None
    }
    return found


def told_of_models(result: Result) -> list[str]:
    """Doubts and notes about the models, each once, and of whom it is where there are several."""
    of: dict[str, list[str]] = {}
    for name, one in result.models.items():
        for line in (*one.doubts, *one.notes):
            of.setdefault(line, []).append(name)
    return [_attributed(result, names, line) for line, names in of.items()]


def _about_writing(result: Result) -> Iterator[str]:
    for name, one in result.models.items():
        if one.written is not None:
            written = one.written
            line = f"Left to write by itself about {written.windows:,} windows, the model wrote texts of which "
            line += f"{written.unparseable:.1%} are none of the answers"
            quoted = ", ".join(json.dumps(text, ensure_ascii=False) for text in written.examples)
            yield _attributed(result, [name], line + (f", such as {quoted}." if quoted else "."))


def _attributed(result: Result, names: list[str], line: str) -> str:
    return f"{', '.join(map(plain_text, names))}: {line}" if len(result.models) > 1 else line


def read_evaluation(folder: str | Path) -> Evaluation:
    """What `Evaluation.write` has written.

    Raises:
        ValueError: the folder has no `results.json`, or one of something else.
    """
    file = Path(folder) / "results.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no results: scripts/evaluate_tasks.py writes a results.json.")
    try:
        content = _of_models(json.loads(file.read_text(encoding="utf-8")))
        models = {name: EvaluatedModel(**model) for name, model in content["models"].items()}
        return Evaluation(models, content["as_reference"], [_read_result(one) for one in content["results"]])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no evaluation of this package: {error!r}.") from error


def _of_models(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """A file as it is written now; earlier ones are of one language model, whose results stand among the others."""
    if "models" in content:
        return content
    name, results = content["name"], []
    for one in content["results"]:
        # the notes of that time that are about the model
        doubts = [note for note in one["notes"] if note.startswith("The model ")]
        own = {"doubts": doubts, "notes": [], "first_less": None}
        own |= {"scores": one["model"], "less_baseline": one["difference"]}
        own |= {key: one[key] for key in ("by_subject", "written")}
        rest = {key: value for key, value in one.items() if key not in ("model", "difference", *own)}
        notes = [note for note in one["notes"] if note not in doubts]
        results.append({**rest, "models": {name: own}, "baseline_by_subject": None, "notes": notes})
    models = {name: {"kind": "answers", "source": content["source"]}}
    return {**content, "models": models, "results": results}


def _read_result(content: Mapping[str, Any]) -> Result:
    """A result as `asdict` left it."""
    own = {
        "models": {name: _read_model_result(one) for name, one in content["models"].items()},
        "baseline": _read_scores(content["baseline"]),
        "chance": _read_scores(content["chance"]),
        "protocol": Protocol(**content["protocol"]),
        "published": [PublishedFigures(**one) for one in content["published"]],
    }
    return Result(**{**content, **own})


def _read_model_result(content: Mapping[str, Any]) -> ModelResult:
    scores = {name: _read_scores(content[name]) for name in ("scores", "less_baseline", "first_less")}
    written = None if content["written"] is None else WrittenAnswers(**content["written"])
    return ModelResult(**{**content, **scores, "written": written})


def _read_scores(content: Mapping[str, Any] | None) -> dict[str, Score] | None:
    return None if content is None else {metric: Score(**score) for metric, score in content.items()}


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
    "A difference is taken within each draw, on the same subjects: where its interval holds 0, these subjects do not "
    "tell the two apart."
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

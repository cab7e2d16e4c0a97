#!/usr/bin/env python
"""What a small NeuroLM and a small LaBraM learn from 16 people: the study of docs/study.md, to its table and pictures.

    python scripts/study.py --recordings ../shared/recordings/eegmat --output study-output

Four subject-wise folds of EEGMAT (rest against mental arithmetic). In each, all three stages of both models see the
training subjects only, by the scripts that everybody uses (train_vq.py; pretrain.py and instruction_tune.py, or
pretrain_masked.py and finetune_classifier.py; with recipes/*-cpu.yaml), and the answers about the other subjects are
scored beside the plain baseline on the same windows. On the first fold, one thing at a time is changed. Stopped or
killed, the same command goes on where it was.
Exit status: 0 finished, 1 failed, 2 wrong usage.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs the Hub

import numpy as np
import torch
import yaml
from numpy.typing import ArrayLike
from transformers import AutoModel, set_seed

from neurolm_hf.answering import open_any
from neurolm_hf.baseline import baseline_probabilities, logistic_probabilities
from neurolm_hf.collators import EEGCollator
from neurolm_hf.command_line import options_parser
from neurolm_hf.figures import plot_losses, plot_scores
from neurolm_hf.metrics import Interval, auroc, balanced_accuracy, interval_over_subjects
from neurolm_hf.preparation import prepare_dataset
from neurolm_hf.probe import region_features
from neurolm_hf.processing_neurolm import EEGFeatureExtractor, train_text_tokenizer
from neurolm_hf.recipes import read_recipe
from neurolm_hf.scoring import calibrate
from neurolm_hf.starting_models import new_text_model
from neurolm_hf.storage import load_prepared, row_signal, write_text
from neurolm_hf.task_sections import FolderSplit
from neurolm_hf.tasks import Task, load_task
from neurolm_hf.text import prepare_text, read_files, transformers_encoder


SCRIPTS = Path(__file__).parent
RECIPES = SCRIPTS.parent / "recipes"
DEMO_TEXT = SCRIPTS / "demo_text.txt"

FOLDS = 4
# of instruction tuning, whose result moves more from seed to seed than most changes move it
SEEDS = 3
# a small model needs an input of about unit size; the paper's 100 is for a large one
SCALE = 10.0
STAGES = ("vq", "pretrained", "tuned")
# what stands between two marks of docs/study.md is written by this script
MARKS = ("<!-- table: scripts/study.py -->", "<!-- end of table -->")

NEUROLM, LABRAM = "NeuroLM", "LaBraM"
BASELINE, PROBE = "log band power, logistic regression", "tokenizer's features, logistic regression"
# model -> stage -> script and recipe
COMMANDS = {
    NEUROLM: {
        "vq": ("train_vq.py", "vq-cpu.yaml"),
        "pretrained": ("pretrain.py", "pretrain-cpu.yaml"),
        "tuned": ("instruction_tune.py", "instruction-cpu.yaml"),
    },
    LABRAM: {
        "vq": ("train_vq.py", "labram-vq-cpu.yaml"),
        "pretrained": ("pretrain_masked.py", "labram-pretrain-cpu.yaml"),
        "tuned": ("finetune_classifier.py", "labram-finetune-cpu.yaml"),
    },
}
# of the probe on the mean feature of each region; chosen, as these, before it was run on these tokenizers
PROBE_STRENGTH = 0.001
# what a variant changes in the recipe of a stage; None leaves the stage out. Those of LaBraM begin with its name.
VARIANTS: dict[str, dict[str, dict[str, Any] | None]] = {
    NEUROLM: {},
    "without pre-training": {"pretrained": None},
    "with the text adversary": {"vq": {"text_model": "text-model", "text_data": "text"}},
    "frequency target only": {"vq": {"vq_config": {"raw_weight": 0.0}}},
    "raw target only": {"vq": {"vq_config": {"frequency_weight": 0.0}}},
    LABRAM: {},
    # a step that moves nothing leaves the encoder as it was drawn
    "LaBraM without pre-training": {"pretrained": {"max_steps": 1, "learning_rate": 0.0}},
}
# the others are trained on the first fold only
ON_ALL_FOLDS = (NEUROLM, "without pre-training", LABRAM, "LaBraM without pre-training")


@dataclass
class StudyArguments:
    """Where from, where to, and how much at once."""

    recordings: Path = field(metadata={"help": "Folder of EEGMAT's recordings, SubjectNN_1.edf and SubjectNN_2.edf."})
    output: Path = field(default=Path("study-output"), metadata={"help": "Folder for everything that is made."})
    jobs: int = field(default=2, metadata={"help": "Trainings at a time, each with one core."})
    docs: Path | None = field(
        default=None, metadata={"help": "Folder of study.md, whose table and pictures are to be renewed."}
    )


@dataclass(frozen=True)
class Scores:
    """Answers about the test windows of a fold.

    Attributes:
        variant, fold, seed: whose.
        probabilities: of the answer Yes, one a window.
        calibrated: the same, with the prior calibrated on the training windows.
        labels, subjects: of the windows.
    """

    variant: str
    fold: int
    seed: int
    probabilities: list[float]
    calibrated: list[float]
    labels: list[int]
    subjects: list[str]


def main(arguments: StudyArguments) -> None:
    """Every fold and every variant, then the table."""
    task, output = load_task("Workload"), arguments.output
    prepare_folds(output, task, arguments.recordings)
    prepare_language(output, task)
    runs = [
        (name, fold, seed)
        for name in VARIANTS
        for fold in (range(FOLDS) if name in ON_ALL_FOLDS else [0])
        for seed in range(SEEDS)
    ]
    for stage in STAGES:
        commands = {place(output, *run, stage): command(output, *run, stage) for run in runs}
        run_all({folder: given for folder, given in commands.items() if given}, arguments.jobs)
    scores = [model_scores(output, *run, task) for run in runs]
    scores += [given(output, fold) for given in (baseline_scores, probe_scores) for fold in range(FOLDS)]
    write_text(output / "scores.json", json.dumps([dataclasses.asdict(one) for one in scores], indent=1) + "\n")
    print(table(scores))
    if arguments.docs is not None:
        write_docs(arguments.docs, output, scores)


def prepare_folds(output: Path, task: Task, recordings: Path) -> None:
    """Prepared sets of each fold: `corpus` from whole recordings, `dense` and `task` from the labelled minute.

    Fold i tests on every fourth subject from the i-th on.
    """
    files = sorted(recordings.glob("Subject*_[12].edf"))
    subjects = sorted({file.name.partition("_")[0] for file in files})
    if len(subjects) < 2 * FOLDS:
        raise ValueError(f"{recordings} holds recordings of {len(subjects)} subjects; {FOLDS} folds need {2 * FOLDS}.")
    pattern = r"(?P<split>train|test)/(?P<subject>Subject\d+)_(?P<label>[12])\.edf"
    task = dataclasses.replace(
        task,
        recordings=dataclasses.replace(task.recordings, pattern=pattern),
        split=FolderSplit("folders", {"train": "train", "test": "test"}),
    )
    windows: dict[str, dict[str, Any]] = {
        "corpus": {"last_seconds": None, "stride_seconds": 0.5},
        "dense": {"stride_seconds": 0.5},
        "task": {},
    }
    extractor = EEGFeatureExtractor(scale=SCALE, notch_frequency=task.notch_hz, window_seconds=task.windows.seconds)
    for fold in range(FOLDS):
        folder = output / f"fold-{fold}"
        parts = {
            file: "test" if subjects.index(file.name.partition("_")[0]) % FOLDS == fold else "train" for file in files
        }
        link_recordings(folder / "recordings", parts)
        for name, changes in windows.items():
            wanted = dataclasses.replace(task, windows=dataclasses.replace(task.windows, **changes))
            summary = prepare_dataset(wanted, folder / "recordings", folder / name, feature_extractor=extractor)
            if summary.failed:
                raise ValueError(f"{summary.failed[0]['recording']}: {summary.failed[0]['error']}")


def link_recordings(folder: Path, parts: Mapping[Path, str]) -> None:
    """Symbolic links to files in a folder for each part.

    Raises:
        ValueError: the folder holds other links, as of a study that had fewer recordings.
    """
    wanted = {folder / part / file.name: file.resolve() for file, part in parts.items()}
    if strange := sorted(link for link in folder.rglob("*.edf") if link not in wanted):
        raise ValueError(f"{strange[0]} belongs to a study of other recordings: give this one an --output of its own.")
    for link, file in wanted.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(file)


def prepare_language(output: Path, task: Task) -> None:
    """`text-model`, a small GPT-2 with random weights and a tokenizer of its own, and `text` that it is to learn."""
    sentences = DEMO_TEXT.read_text(encoding="utf-8").splitlines()
    # the words of the task belong to the language: without EEG beside them they give nothing away
    sentences += [task.training_text(answer) for answer in task.classes] * (len(sentences) // 2)
    folder = output / "text-model"
    if not (folder / "config.json").is_file():
        set_seed(0)
        tokenizer = train_text_tokenizer(sentences, vocab_size=768)
        tokenizer.save_pretrained(folder)
        fields = read_recipe(RECIPES / "pretrain-cpu.yaml")["text_config"]
        new_text_model("gpt2", tokenizer, fields).save_pretrained(folder)
    file = output / "text.jsonl"
    write_text(file, "".join(json.dumps({"text": sentence}) + "\n" for sentence in sentences))
    encoder = transformers_encoder(str(folder))
    prepare_text(read_files([file], "text"), output / "text", encoder, source={"file": file.name}, block_length=64)


def place(output: Path, name: str, fold: int, seed: int, stage: str) -> Path:
    """The folder of a stage. A variant shares the full one's as far as it changes nothing, and seeds share all before
    instruction tuning."""
    changed = any(before in VARIANTS[name] for before in STAGES[: STAGES.index(stage) + 1])
    folder = output / f"fold-{fold}" / (name if changed else model_of(name)).replace(" ", "-")
    return folder / (f"{stage}-{seed}" if stage == "tuned" else stage)


def model_of(name: str) -> str:
    """Which model a variant is of."""
    return LABRAM if name.startswith(LABRAM) else NEUROLM


def command(output: Path, name: str, fold: int, seed: int, stage: str) -> list[str] | None:
    """The command of a stage, whose recipe is written beside its folder; None for a stage that is left out."""
    folder, data = place(output, name, fold, seed, stage), output / f"fold-{fold}"
    vq, text_model, text = place(output, name, fold, seed, "vq"), output / "text-model", output / "text"
    changes = VARIANTS[name].get(stage, {})
    if changes is None:
        return None
    script, recipe_file = COMMANDS[model_of(name)][stage]
    recipe = merged(read_recipe(RECIPES / recipe_file), changes)
    given: list[Any] = ["--train-data", data / ("dense" if stage == "tuned" else "corpus")]
    if stage == "vq":
        given.append("--from-scratch")
    elif stage == "tuned":
        given += ["--seed", seed]
        if VARIANTS[name].get("pretrained", {}) is None:
            given += ["--vq", vq, "--text-model", text_model]
        else:
            given += ["--model", place(output, name, fold, seed, "pretrained")]
    elif model_of(name) == LABRAM:
        given += ["--vq", vq, "--from-scratch"]
    else:
        given += ["--vq", vq, "--text-model", text_model, "--text-data", text]
        del recipe["text_config"]  # of the model in `text-model`
    for key in ("text_model", "text_data"):
        if key in recipe:
            recipe[key] = str(output / recipe[key])
    file = folder.with_suffix(".yaml")
    write_text(file, yaml.safe_dump(recipe, sort_keys=False))
    return [sys.executable, str(SCRIPTS / script), str(file), "--output-dir", str(folder), *map(str, given)]


def merged(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with changes; where both hold fields of a configuration, these are merged."""
    both = {key: {**recipe[key], **value} for key, value in changes.items() if isinstance(recipe.get(key), dict)}
    return {**recipe, **changes, **both}


def run_all(commands: Mapping[Path, list[str]], jobs: int) -> None:
    """Runs the commands, some at a time; what each prints goes into a log beside its folder.

    Raises:
        ValueError: one of them failed; the message ends with the last line of its log.
    """

    def run(folder: Path) -> None:
        log = folder.with_suffix(".log")
        with log.open("a", encoding="utf-8") as file:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            status = subprocess.run(commands[folder], stdout=file, stderr=file, env=environment).returncode
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        if status:
            raise ValueError(f"{folder}: exit status {status}; see {log}. {' '.join(last)}")
        print(f"{folder}: done", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        # one that fails does not keep the others from ending
        for future in [pool.submit(run, folder) for folder in commands]:
            future.result()


def model_scores(output: Path, name: str, fold: int, seed: int, task: Task) -> Scores:
    """What a tuned model answers about the test windows of its fold."""
    answering = open_any(str(place(output, name, fold, seed, "tuned")), task)

    def answers(rows: Any) -> np.ndarray:
        scores = torch.stack(list(answering.score(rows, task, 64)))
        return scores.double().softmax(dim=1).numpy()

    return scores_of(name, output, fold, seed, answers)


def baseline_scores(output: Path, fold: int) -> Scores:
    """The plain baseline on the same windows."""
    train = load_prepared(output / f"fold-{fold}" / "task", "train")
    windows, labels = signals(train), np.asarray(train["label"])

    def answers(rows: Any) -> np.ndarray:
        return baseline_probabilities(windows, labels, signals(rows), sampling_rate=200)

    return scores_of(BASELINE, output, fold, 0, answers)


def probe_scores(output: Path, fold: int) -> Scores:
    """What can be read from the tokenizer's features without a language model."""
    folder = str(place(output, NEUROLM, fold, 0, "vq"))
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    collate = EEGCollator(EEGFeatureExtractor.from_pretrained(folder))
    train = load_prepared(output / f"fold-{fold}" / "task", "train")
    windows, labels = region_features(model, collate, train), np.asarray(train["label"])

    def answers(rows: Any) -> np.ndarray:
        features = region_features(model, collate, rows)
        return logistic_probabilities(windows, labels, features, strength=PROBE_STRENGTH)

    return scores_of(PROBE, output, fold, 0, answers)


def signals(rows: Any) -> np.ndarray:
    """float32 (windows, channels, samples)"""
    return np.stack([row_signal(row) for row in rows])


def scores_of(name: str, output: Path, fold: int, seed: int, answers: Callable[[Any], np.ndarray]) -> Scores:
    """Answers about the test windows of a fold, and these calibrated on its training windows."""
    folder = output / f"fold-{fold}" / "task"
    train, test = load_prepared(folder, "train"), load_prepared(folder, "test")
    probabilities = answers(test)
    return Scores(
        variant=name,
        fold=fold,
        seed=seed,
        probabilities=probabilities[:, 1].tolist(),
        calibrated=calibrate(probabilities, answers(train))[:, 1].tolist(),
        labels=np.asarray(test["label"]).tolist(),
        subjects=[str(subject) for subject in test["subject"]],
    )


def means(scores: Sequence[Scores], against: Sequence[Scores] | None = None) -> dict[str, tuple[float, Interval]]:
    """Each metric as the mean over folds and seeds, with its 95% interval over subjects; or how far above `against`.

    Args:
        scores: of one variant.
        against: others of the same folds, in the same order.
    """
    models = np.concatenate([[number] * len(one.labels) for number, one in enumerate(scores)])
    labels = np.concatenate([one.labels for one in scores])
    subjects = np.concatenate([one.subjects for one in scores])
    windows = np.arange(len(labels))

    def mean(metric: Callable[[ArrayLike, ArrayLike], float], values: np.ndarray) -> Callable[..., float]:
        """The metric's mean over models, of the windows whose numbers it is given."""

        def of_windows(_: ArrayLike, drawn: ArrayLike) -> float:
            chosen = np.asarray(drawn)
            own = [chosen[models[chosen] == model] for model in np.unique(models[chosen])]
            return float(np.mean([metric(labels[part], values[part]) for part in own]))

        return of_windows

    found = {}
    for name, (metric, values_of) in METRICS.items():
        own = mean(metric, np.concatenate([values_of(one) for one in scores]))
        other = mean(metric, np.concatenate([values_of(one) for one in against])) if against else None
        whole = own if other is None else (lambda truth, drawn, a=own, b=other: a(truth, drawn) - b(truth, drawn))
        found[name] = (whole(labels, windows), interval_over_subjects(whole, labels, windows, subjects))
    return found


METRICS: dict[str, tuple[Callable[[ArrayLike, ArrayLike], float], Callable[[Scores], np.ndarray]]] = {
    "balanced accuracy": (balanced_accuracy, lambda one: np.asarray(one.probabilities) > 0.5),
    "calibrated": (balanced_accuracy, lambda one: np.asarray(one.calibrated) > 0.5),
    "AUROC": (auroc, lambda one: np.asarray(one.probabilities)),
}


def table(scores: Sequence[Scores]) -> str:
    """Markdown: what was trained on all folds, beside baseline and chance; then every variant on the first fold."""
    of = {name: [one for one in scores if one.variant == name] for name in (*VARIANTS, PROBE, BASELINE)}
    lines = [f"Mean over {FOLDS} folds and {SEEDS} seeds, with the 95% interval over subjects.", ""]
    lines += heading("", *METRICS, "AUROC by fold")
    for name in (*ON_ALL_FOLDS, PROBE, BASELINE):
        lines.append(row(name, *map(with_interval, means(of[name]).values()), by_fold(of[name])))
    for name in (*ON_ALL_FOLDS, PROBE):
        plain = [of[BASELINE][one.fold] for one in of[name]]
        lines.append(row(f"{name}, above the baseline", *map(with_interval, means(of[name], plain).values()), ""))
    lines.append(row(f"{LABRAM}, above {NEUROLM}", *map(with_interval, means(of[LABRAM], of[NEUROLM]).values()), ""))
    lines += [row("chance", *["0.500"] * len(METRICS), ""), "", f"One change at a time, fold 0, {SEEDS} seeds.", ""]
    lines += heading("", *METRICS)
    first = {name: [one for one in given if one.fold == 0] for name, given in of.items()}
    lines += [row(name, *map(with_interval, means(given).values())) for name, given in first.items()]
    return "\n".join(lines)


def by_fold(scores: Sequence[Scores]) -> str:
    """AUROC of each fold, mean over its seeds."""
    folds = sorted({one.fold for one in scores})
    return " ".join(
        f"{np.mean([auroc(one.labels, one.probabilities) for one in scores if one.fold == fold]):.2f}"
        for fold in folds
    )


def heading(*cells: str) -> list[str]:
    """The first two lines of a Markdown table."""
    return [row(*cells), row(*["---"] * len(cells))]


def row(*cells: str) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def with_interval(given: tuple[float, Interval]) -> str:
    """A figure and its interval."""
    return f"{given[0]:.3f} ({given[1].low:.2f} to {given[1].high:.2f})"


def write_docs(docs: Path, output: Path, scores: Sequence[Scores]) -> None:
    """Renews the table in study.md, and its two pictures."""
    page = docs / "study.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    if not after:
        raise ValueError(f"{page} lacks the lines {' and '.join(MARKS)}, between which the table belongs.")
    write_text(page, f"{before}{MARKS[0]}\n{table(scores)}\n{MARKS[1]}{after}")
    rows = [
        (f"{short(name)}, {FOLDS} folds", *means([one for one in scores if one.variant == name])["AUROC"])
        for name in (*ON_ALL_FOLDS, PROBE, BASELINE)
    ]
    for name in (*VARIANTS, PROBE, BASELINE):
        first = [one for one in scores if one.variant == name and one.fold == 0]
        rows.append((f"{short(name)}, fold 0", *means(first)["AUROC"]))
    plot_scores(rows, "AUROC", chance=0.5).savefig(docs / "study-scores.png")
    plot_losses(losses(output)).savefig(docs / "study-losses.png")


def short(name: str) -> str:
    """What a picture has room for."""
    return name.partition(",")[0]


def losses(output: Path) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Stage -> fold -> steps and training losses."""
    drawn = {"vq": "Neural tokenizer", "pretrained": "Pre-training", "tuned": "Instruction tuning"}
    found: dict[str, dict[str, tuple[list[float], list[float]]]] = {title: {} for title in drawn.values()}
    for stage, title in drawn.items():
        for fold in range(FOLDS):
            results = place(output, NEUROLM, fold, 0, stage) / "training.json"
            log = [one for one in json.loads(results.read_text(encoding="utf-8"))["log"] if "loss" in one]
            found[title][f"fold {fold}"] = ([one["step"] for one in log], [one["loss"] for one in log])
    return found


if __name__ == "__main__":
    parser = options_parser(StudyArguments, description=__doc__)
    try:
        main(*parser.parse_args_into_dataclasses())
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")

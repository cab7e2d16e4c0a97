"""Ask a NeuroLM about EEG: every window of every recording gets an answer, with
a probability for each that is allowed.

MODEL is a folder or an id of the Hub: a model, or an adapter (LoRA) of one. It
knows the tasks that it was tuned on; where that is one, --task may be left out:
    neurolm ask demo-output/model demo-output/recordings/Subject00_2.edf
    neurolm ask my-sleep-model night1.edf night2.edf --task HMC --csv all.csv

Any other question, with the answers that it may have; without them the model
writes what it likes:
    neurolm ask MODEL night.edf --question "Is it REM?" --answer Yes --answer No

Few-shot: recordings with their answers, which the model reads before every
window. @ is the second where an example starts; a recording that is one window
long needs none:
    neurolm ask MODEL new.edf --example rest.edf@30=No --example work.edf@30=Yes

For MNE's browser, an annotation a window; of several recordings one file each,
numbered:
    neurolm ask MODEL night.edf --annotations night-annot.fif
    python -c 'import mne; raw = mne.io.read_raw("night.edf");
    raw.set_annotations(mne.read_annotations("night-annot.fif"));
    raw.plot(block=True)'

For programs, a JSON object a recording, a line each:
    neurolm ask MODEL *.edf --json | jq -c '[.path, .mean_probabilities]'

A recording is filtered and scaled as the model wants it. Wrong units, unknown
channels, NaN and files cut short are errors that say where, and stop none of
the other recordings. Probabilities are among the allowed answers; how far they
can be trusted is for an evaluation on other people to say. Code that lies
beside a model's weights is never run.

Fields of --json: path, question, windows (start and end in seconds, answer,
probabilities; without allowed answers: written), counts (answer: windows),
mean_probabilities. A recording that cannot be read has path, error.

Exit status: 0 all recordings were asked about, 1 any could not be, or the
model not be opened (the rest is done), 2 wrong usage.
"""

import argparse
import csv
import os
from collections import Counter
from pathlib import Path
from typing import Any

from .console import FAILURES, Console, check_output, numbered, one_line, table
from .question import add_question_options, check_question_options, open_pipeline
from .reading import add_reading_options, add_window_options, check_model, check_window_options


HELP = "what a model answers about each window of a recording, with probabilities"
# As MNE wants them named; the longest first.
ANNOTATION_SUFFIXES = ("-annot.fif", "_annot.fif", ".csv", ".txt")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `neurolm ask`."""
    parser.add_argument("model", metavar="MODEL", help="a NeuroLM or an adapter: a folder or an id of the Hub")
    parser.add_argument("files", nargs="+", metavar="FILE", help="recordings, in any format that MNE reads")
    add_question_options(parser)
    parser.add_argument(
        "--example",
        action="append",
        default=[],
        metavar="FILE[@SECOND]=ANSWER",
        help="a window with its answer, for the model to read first; once for each",
    )
    parser.add_argument("--json", action="store_true", help="a JSON object a recording instead of tables")
    parser.add_argument("--csv", metavar="FILE", help="write the answers about all recordings there as well")
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        help=f"write the answers as MNE's annotations there as well: a name in {', '.join(ANNOTATION_SUFFIXES)}",
    )
    add_window_options(parser)
    add_reading_options(parser)


def run(options: argparse.Namespace, console: Console) -> None:
    """Asks about each file.

    Raises:
        ValueError, OSError, ImportError: the model cannot be opened, or what is asked does not fit it.
    """
    check_model(options.model, options.parser)
    check_question_options(options)
    check_window_options(options)
    examples = [_example(text, options.parser) for text in options.example]
    if options.annotations and not options.annotations.endswith(ANNOTATION_SUFFIXES):
        options.parser.error(f"MNE wants --annotations to end in {', '.join(ANNOTATION_SUFFIXES)}")
    for path in (options.csv, options.annotations):
        check_output(path, options.parser)
    asked = {
        "task": options.task,
        "question": options.question,
        "candidate_answers": options.answer,
        "window_seconds": options.window_seconds,
        "stride_seconds": options.stride_seconds,
        "examples": examples,
        "unit": options.unit,
        "unknown_channels": options.unknown_channels,
    }
    pipe = open_pipeline(options.model, options.device, console, options.batch_size)
    _tell_progress(pipe, console)
    # what is wrong with the question or an example is wrong for every recording: say it once
    question = pipe.settle(**asked)["asked"].question
    summaries: list[dict[str, Any]] = []
    with open(options.csv or os.devnull, "w", newline="", encoding="utf-8") as file:
        csv_rows = csv.writer(file)

        def ask(recording: str, number: int) -> None:
            answers = pipe(recording, **asked)
            rows, summary = answers.rows(), _summary(recording, answers)
            if not summaries:
                csv_rows.writerow(["path", *rows[0]])
            csv_rows.writerows([recording, *row.values()] for row in rows)
            file.flush()  # what is asked next may be stopped
            summaries.append(summary)
            document = {"path": recording, "question": question.text, "windows": list(answers), **summary}
            console.result(document, _as_text(recording, rows, summary))
            if options.annotations:
                suffix = next(one for one in ANNOTATION_SUFFIXES if options.annotations.endswith(one))
                _annotate(
                    recording, answers, numbered(options.annotations, number, len(options.files), suffix), console
                )

        console.text(question.text)
        console.each(options.files, ask)
    if len(summaries) > 1 and question.answers:
        console.text("\n".join(_summary_table(summaries)))


def _tell_progress(pipe: Any, console: Console) -> None:
    """Has the pipeline tell up to which second it has read, once a batch."""
    forward = pipe.forward

    def read_on(batch: dict[str, Any], **settings: Any) -> Any:
        console.progress(f"read until {batch['spans'][-1][0]:.0f} s")
        return forward(batch, **settings)

    pipe.forward = read_on


def _example(text: str, parser: argparse.ArgumentParser) -> tuple[Any, ...]:
    """`FILE@SECOND=ANSWER` as the pipeline takes examples: (file, second, answer), or (file, answer)."""
    place, equals, answer = text.rpartition("=")
    if not (place and equals and answer):
        parser.error(f"--example is FILE=ANSWER or FILE@SECOND=ANSWER, not {text!r}")
    file, at, second = place.rpartition("@")
    try:
        return (file, float(second), answer) if at else (place, answer)
    except ValueError:  # an @ of the file's name
        return (place, answer)


def _annotate(recording: str, answers: Any, path: Path, console: Console) -> None:
    """Writes the answers, and nothing else, as annotations that fit the recording."""
    from ..reading_neurolm import open_recording

    try:
        raw, _ = open_recording(recording)
        raw.set_annotations(None)
        answers.annotate(raw)
        raw.annotations.save(path, overwrite=True, verbose="ERROR")
    except FAILURES as error:
        console.error(f"the annotations {path} of {recording} cannot be written: {one_line(error)}")


def _summary(path: str, answers: Any) -> dict[str, Any]:
    """How often each answer was given, and the mean of its probability over the windows."""
    names = answers[0].get("probabilities", ())
    given = Counter(window["answer"] for window in answers if names)
    means = {name: sum(window["probabilities"][name] for window in answers) / len(answers) for name in names}
    return {"path": path, "counts": {name: given[name] for name in names}, "mean_probabilities": means}


def _as_text(path: str, rows: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    """A table of the windows and a line about them all."""
    names = list(summary["counts"])
    cells = [["seconds", "answer", *names] if names else ["seconds", "written"]]
    for row in rows:
        said = [row["answer"], *(f"{row[f'p({name})']:.2f}" for name in names)] if names else [repr(row["written"])]
        cells.append([f"{row['start']:g}-{row['end']:g}", *said])
    lines = ["", path, *(f"  {line}" for line in table(cells, left=2))]
    if names:
        counts = ", ".join(f"{name} {count}" for name, count in summary["counts"].items())
        means = ", ".join(f"{name} {mean:.2f}" for name, mean in summary["mean_probabilities"].items())
        lines.append(f"  {len(rows)} window{'s' * (len(rows) > 1)}: {counts}; mean probabilities: {means}")
    return "\n".join(lines)


def _summary_table(summaries: list[dict[str, Any]]) -> list[str]:
    """A line a recording: its windows, its most frequent answer, and the mean probabilities."""
    names = list(summaries[0]["counts"])
    cells = [["recording", "most frequent", "windows", *(f"mean p({name})" for name in names)]]
    for one in summaries:
        counts = one["counts"]
        means = [f"{one['mean_probabilities'][name]:.2f}" for name in names]
        cells.append([one["path"], max(counts, key=counts.get), str(sum(counts.values())), *means])
    return ["", *table(cells, left=2)]

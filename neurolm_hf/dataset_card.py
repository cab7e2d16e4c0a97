"""The card of a prepared set, made from what its JSON files and shards say; what all cards are written with."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .splits import SUBJECT_SHARES
from .storage import NEEDED, write_text


# What is known of the six tasks' and the shipped corpora's sources, by task name. For others the card says that it
# does not know.
SOURCES = {
    **dict.fromkeys(
        ("TUAB", "TUEV", "TUSL", "TUEG"),
        "Temple University Hospital EEG Corpus, given out on request by the Neural Engineering Data Consortium. Its "
        "terms decide whether anything made from it may be passed on: see the source.",
    ),
    "SEED": "SEED, given out on request by the BCMI laboratory of Shanghai Jiao Tong University. Its terms decide "
    "whether anything made from it may be passed on: see the source.",
    "HMC": "PhysioNet, Haaglanden Medisch Centrum sleep staging database: CC BY 4.0.",
    "Workload": "PhysioNet, EEG During Mental Arithmetic Tasks: Open Data Commons Attribution License 1.0 (ODC-By).",
    "EEGMMIDB": "PhysioNet, EEG Motor Movement/Imagery Dataset: Open Data Commons Attribution License 1.0 (ODC-By).",
}
_LISTED = 50  # files by name; more are in summary.json
_HUB_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
# What Markdown takes for a sign, except the bar, which `markdown_table` sees to, and what stands inside a word.
_MARKDOWN = re.compile(r"([\\`*\[\]<>#~!&]|(?<!\w)_|_(?!\w))")
# How the reasons begin that channels are dropped for because they are no EEG, which is no loss.
_NO_EEG = ("MNE channel type", "not EEG by its name", "a pair of two reference electrodes")
_RULES = {
    "subject": "by subject",
    "folders": "the folders of the source, validation taken from the training subjects",
    "counts": "by the number of files, in name order",
    "shares": "by shares of the files, in name order",
    "trials": "by trials inside each recording",
    "table": "by the table's column `split`",
}


def write_card(folder: str | Path) -> Path:
    """Writes `README.md` into a prepared folder: what is in it, how it was made, and how to load it.

    Figures come from `preparation.json`, `summary.json` and the label column of the shards; the same folder gives the
    same bytes. Its header names the files of every split, so that `load_dataset(folder)` works.

    Args:
        folder: a finished prepared set. The `licence` of its `preparation.json` is that of the recordings: an
            identifier of the Hub such as `odc-by`, or words. Without one the card says what is known of the source.

    Returns:
        The path of the card.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the folder holds no finished set.
    """
    folder = Path(folder)
    preparation, summary = read_description(folder)
    licence = preparation.get("licence")
    sections = [
        _header(preparation, summary, licence),
        f"# {preparation['task']}: EEG windows prepared for NeuroLM\n",
        _what_is_asked(preparation["task_file"]),
        _contents(folder, preparation["task_file"], summary),
        _preparation(preparation, summary),
        _split(preparation, summary),
        _losses(summary),
        _LOADING.format(split=next(iter(summary["windows"]), "train")),
        "## Source\n\n" + _source(preparation["task"], licence) + "\n",
    ]
    card = folder / "README.md"
    write_text(card, "\n".join(section for section in sections if section))
    return card


def read_description(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`preparation.json` and `summary.json` of a finished prepared set.

    Raises:
        ValueError: one of them is not there or is not JSON.
    """
    contents = []
    for name in ("preparation.json", "summary.json"):
        file = Path(folder) / name
        if not file.is_file():
            raise ValueError(f"{folder} holds no finished prepared set: it has no {name}.")
        try:
            contents.append(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: {error}.") from error
    return contents[0], contents[1]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; bars and line breaks within its cells do no harm."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines)


def hub_licence(licence: str) -> str:
    """A licence as the head of a card names it: an identifier of the Hub, `other` for words."""
    return licence if _HUB_LICENCE.fullmatch(licence) else "other"


def plain_text(text: str) -> str:
    """A name of whatever kind as one line of Markdown that shows it as it is."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def recipe_in_words(recipe: Mapping[str, Any]) -> str:
    """What a preprocessing recipe does, as it stands behind "recordings were"."""
    low, high = recipe["band"]
    steps = []
    if recipe["do_filter"]:
        steps.append(f"band-passed {low:g}–{high:g} Hz")
    if recipe["do_notch"] and recipe["notch_frequency"] is not None:
        steps.append(f"notched at {recipe['notch_frequency']:g} Hz")
    if recipe["do_resample"]:
        steps.append(f"resampled to {recipe['sampling_rate']} Hz")
    if recipe["reference"] is not None:
        steps.append(f"referenced to the {recipe['reference']}")
    if recipe["do_rescale"]:
        steps.append(f"divided by {recipe['scale']:g} µV")
    return ", ".join(steps) or "left as they were"


def _header(preparation: Mapping[str, Any], summary: Mapping[str, Any], licence: str | None) -> str:
    """The YAML that the Hub and `load_dataset` read. A JSON string is a YAML string."""
    lines = ["---", f"pretty_name: {json.dumps(preparation['task'] + ' prepared for NeuroLM')}"]
    if licence is not None:
        lines.append(f"license: {hub_licence(licence)}")
    lines += ["tags:", "- eeg", "- neurolm", f"- {json.dumps(preparation['task'].lower())}"]
    lines += ["configs:", "- config_name: default", "  data_files:"]
    for split in summary["windows"]:
        lines += [f"  - split: {split}", f"    path: data/{split}/*.parquet"]
    return "\n".join([*lines, "---", ""])


def _what_is_asked(task: Mapping[str, Any]) -> str:
    if task["question"] is None:
        return "A corpus to pre-train on: nothing is asked about the windows.\n"
    answers = ", ".join(f"{answer} (class {index})" for answer, index in task["answers"].items())
    return f"> {task['question']}\n\nAnswers: {answers}.\n"


def _contents(folder: Path, task: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Subjects, hours and windows by split, and windows by answer."""
    answers = list(task["answers"])
    labels = {split: _count_labels(folder / "data" / split) for split in summary["windows"]}
    head = ["split", "subjects", "hours", "windows", *answers]
    rows = [
        [
            split,
            f"{summary['subjects'][split]:,}",
            f"{summary['hours'][split]:,.2f}",
            f"{count:,}",
            *(f"{labels[split][index]:,}" for index in range(len(answers))),
        ]
        for split, count in summary["windows"].items()
    ]
    return f"## Contents\n\n{markdown_table(head, rows)}\nFingerprint of the shards: `{summary['fingerprint']}`\n"


def _count_labels(shards: Path) -> Counter[int]:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(NEEDED, name="pyarrow") from error
    counts: Counter[int] = Counter()
    for shard in sorted(shards.glob("*.parquet")):
        counts.update(pq.read_table(shard, columns=["label"]).column("label").to_pylist())
    return counts


def _preparation(preparation: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    steps = recipe_in_words(preparation["recipe"])
    lines = [f"Whole recordings in microvolts were {steps}, and then cut."]
    impossible = Counter(step for file in summary["files"] for step in file.get("steps_impossible", []))
    for step, count in sorted(impossible.items()):
        lines.append(
            f"But {step} was left out of {count:,} of {len(summary['files']):,} recordings, which do not allow it: "
            "see their warnings in `summary.json`."
        )
    lines += _dropped(summary)
    channels = preparation["task_file"]["channels"]
    lines.append(f"Channels: {', '.join(channels) if channels else 'those of each recording'}.")
    lines.append(f"Recipe `{preparation['recipe_id']}`, neurolm_hf {preparation['neurolm_hf']}.")
    return "## Preparation\n\n" + "\n".join(lines) + "\n"


def _dropped(summary: Mapping[str, Any]) -> list[str]:
    """A line on the channels that were left out though they may be EEG: in how many recordings, for which reasons."""
    reasons = [{reason for _, reason in file.get("dropped", [])} for file in summary["files"]]
    counts = Counter(reason for found in reasons for reason in found if not reason.startswith(_NO_EEG))
    if not counts:
        return []
    said = ", ".join(f"{reason} ({count:,})" for reason, count in sorted(counts.items()))
    return [f"Channels were left out, by reason (recordings, of {len(reasons):,}): {said}; see `summary.json`."]


def _split(preparation: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    own, chosen = preparation["task_file"]["split"], preparation["split_rule"]
    rule = own["rule"] if chosen in (None, "published") else chosen
    text = _RULES.get(rule, rule)
    if rule == "subject" and "from" not in preparation:  # what is imported was split elsewhere
        shares = preparation["shares"] or (own["shares"] if own["rule"] == rule else SUBJECT_SHARES)
        text += f", drawn by seed {preparation['seed']}: "
        text += ", ".join(f"{part} {share:g}" for part, share in shares.items() if share)
    lines = [f"Split: {text}."]
    lines += [f"- {note}" for note in summary["notes"]]
    return "## Split\n\n" + "\n".join(lines) + "\n"


def _losses(summary: Mapping[str, Any]) -> str:
    """Windows left out by reason, and files that failed."""
    left_out: Counter[str] = Counter()
    for file in summary["files"]:
        for part in file["left_out"]:
            left_out[part["reason"]] += part["windows"]
    parts = []
    if left_out:
        parts.append(
            markdown_table(["windows", "left out because"], [[f"{n:,}", why] for why, n in sorted(left_out.items())])
        )
    if failed := [[file["recording"], file["error"]] for file in summary["files"] if file["error"] is not None]:
        more = f"\n{len(failed) - _LISTED:,} more: see `summary.json`.\n" if len(failed) > _LISTED else ""
        count = f"{len(failed):,} of {len(summary['files']):,} recordings could not be used.\n\n"
        parts.append(count + markdown_table(["recording", "reason"], failed[:_LISTED]) + more)
    return "## Left out\n\n" + "\n".join(parts) if parts else ""


def _source(task: str, licence: str | None) -> str:
    known = SOURCES.get(task)
    if licence is not None:
        return f"Licence of the recordings: {licence}." + (f" {known}" if known else "")
    return known or "The licence of the recordings is not known to the tool that wrote this card: see the source."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


_LOADING = """\
## Loading

With the path of this folder, or the repository's name, in place of `FOLDER`:

```python
from datasets import load_dataset

dataset = load_dataset("FOLDER", split="{split}").with_format("numpy")
row = dataset[0]
signal = row["signal"].reshape(len(row["channels"]), -1)  # (channels, samples) in row["unit"]
```

With neurolm_hf, `neurolm_hf.storage.load_prepared(folder, split)` gives the same rows, and `row_signal(row)` the
signal of each.
"""

"""What the page says of a recording, as HTML. Whatever comes from outside passes through `html.escape` here."""

import html
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from visit import Opened, Window

from neurolm_hf.channels_neurolm import join_words
from neurolm_hf.inspection import CHANNEL_COLUMNS, RecordingInfo, channel_row
from neurolm_hf.page import Html, bullets, paragraph, table
from neurolm_hf.processing_neurolm import EEGReport


# What a message for programmers advises -> what there is to do on the page.
_ADVICE = (
    (r"Rename them, leave them out, or pass unknown_channels='drop'.*", "They are left out here."),
    (r"pass unit='(\w+)' \(--unit \w+\)", r"choose \1 as the unit and upload it again"),
    (r"pass unit='?(\w+)'?", r"choose \1 as the unit and upload it again"),
)


def notice(message: str) -> str:
    """A message about what could not be done."""
    return f'<p class="notice" role="alert">{html.escape(for_visitors(message))}</p>' if message else ""


def waiting(message: str) -> str:
    """What the page is busy with."""
    return _prose(paragraph(message, kind="waiting"))


def introduction(model: str = "", tasks: Sequence[str] = ()) -> str:
    """What the page is for, and which model answers, where there is one."""
    said = [
        "<h1>Ask an EEG recording</h1>",
        paragraph(
            "Upload a recording, look at it, pick a few seconds and ask a question in words. A NeuroLM answers with a "
            "probability for each allowed answer, and shows its tokens and what mattered."
        ),
        paragraph("This is research software. It is not a medical device, and nothing here is a diagnosis."),
    ]
    if model:
        known = f" It was tuned on {join_words(tasks)}; answers to other questions may mean nothing." if tasks else ""
        said.append(paragraph(f"The model: {model}.{known}", "small"))
        said += (
            []
            if tasks
            else [notice("This model names no question that it was tuned on: its answers may mean nothing.")]
        )
    return _prose(*said)


def for_visitors(message: str) -> str:
    """A message of the package with advice that can be followed on the page."""
    for pattern, advice in _ADVICE:
        message = re.sub(pattern, advice, message, flags=re.DOTALL)
    return message


def report(opened: Opened) -> str:
    """What is in a recording, what the model reads of it, and everything odd about it."""
    info, prepared = opened.info, opened.prepared
    parts = [f"<h2>{html.escape(info.path)}</h2>", _facts(info)]
    problems = list(info.problems)
    if prepared is None:
        parts.append(notice(f"The model cannot read this recording. {opened.refusal}"))
    else:
        parts += _kept(prepared.report)
        problems += [problem for problem in prepared.report.warnings if problem not in problems]
    if problems:
        listed = bullets(map(for_visitors, problems))
        parts.append(f'<div class="odd"><strong>Worth a look</strong>{listed}</div>')
    titles = [*(column.capitalize() for column in CHANNEL_COLUMNS), "Remark"]
    channels = table(titles, map(channel_row, info.channels), caption="Amplitudes are of the unfiltered signal.")
    parts.append(_folded(f"All {len(info.channels)} channels", channels))
    if prepared is not None:
        parts.append(_folded("What was done to the signal", *_steps(prepared.report)))
    return _prose(*parts)


def answer_heading(window: Window, probabilities: dict[str, float]) -> str:
    """The question, the window and the likeliest answer."""
    likeliest = max(probabilities, key=lambda name: probabilities[name])
    question = window.asked.question.text.removeprefix("Question: ")
    said = f"{likeliest}, with a probability of {probabilities[likeliest]:.0%} among the allowed answers."
    return _prose(f"<h2>{html.escape(question)}</h2>", paragraph(f"{span(window)}: {said}"))


def token_table(window: Window, codes: NDArray[np.int64]) -> str:
    """The VQ tokens of a window, (channels, seconds)."""
    often = Counter(codes.ravel().tolist())
    header = ("Channel", *(f"{second} s" for second in range(window.start, window.start + window.seconds)))
    # what occurs again is marked by more than its colour
    rows = (
        (name, *(f"{code}*" if often[code] > 1 else str(code) for code in row))
        for name, row in zip(window.recording.ch_names, codes.tolist(), strict=True)
    )
    note = f"The neural tokenizer's code of each second of each channel, {len(often)} different ones. A star: a code "
    note += "that occurs more than once here."
    return _prose("<h3>Tokens</h3>", paragraph(note), table(header, rows, numbers=True))


def importance_text(window: Window, likeliest: str, unplaced: Sequence[str]) -> str:
    """What the map and the bars of the importances show."""
    note = (
        f"Each channel, second and patch of {span(window)} was taken out in turn. Orange: without it the odds of "
        f"“{likeliest}” fall, so it spoke for this answer; blue: it spoke against. The numbers are natural logarithms "
        "of the odds: 0.7 halves them. Two channels that say the same stand in for each other, and both look "
        "unimportant."
    )
    parts = ["<h3>What mattered</h3>", paragraph(note)]
    if unplaced:
        parts.append(paragraph(f"Not on the map, having no place of their own on it: {join_words(unplaced)}."))
    return _prose(*parts)


def picture(png: str, description: str) -> str:
    """A figure within the page, from a PNG in base64."""
    return f'<img class="figure" alt="{html.escape(description)}" src="data:image/png;base64,{png}">'


def beside(*pictures: str) -> str:
    """Pictures side by side where there is room."""
    return f'<div class="beside">{"".join(pictures)}</div>'


def span(window: Window) -> str:
    """Where a window lies."""
    return f"{window.start} to {window.start + window.seconds} s"


def _facts(info: RecordingInfo) -> str:
    minutes, seconds = divmod(info.seconds, 60)
    length = f"{info.seconds:.3g} s" if minutes < 2 else f"{minutes:.0f} min {seconds:.0f} s"
    annotations = sum(info.annotations.values())
    facts = [info.format, f"{info.sampling_rate:g} Hz", length, f"{len(info.channels)} channels"]
    facts += [f"{annotations} annotations"] if annotations else []
    return f'<div class="facts">{bullets(facts)}</div>'


def _kept(given: EEGReport) -> list[Html]:
    names = join_words(name for _, name in given.kept)
    said = [f"The model reads {len(given.kept)} channels: {names}."]
    if given.renamed:
        original, name = given.renamed[0]
        said.append(f"{len(given.renamed)} of them are renamed, such as {original} to {name}.")
    if given.dropped:
        listed = join_words(f"{name} ({reason})" for name, reason in given.dropped)
        said.append(f"Left out: {listed}.")
    return [paragraph(one) for one in said]


def _steps(given: EEGReport) -> list[Html]:
    said = [f"In this order, on the whole recording: {join_words(given.steps_applied)}."]
    if given.steps_skipped:
        said.append(f"Not done: {join_words(f'{step} ({reason})' for step, reason in given.steps_skipped)}.")
    return [paragraph(one) for one in said]


def _folded(heading: str, *body: Html) -> str:
    return f"<details><summary>{html.escape(heading)}</summary>{''.join(body)}</details>"


def _prose(*parts: str) -> str:
    return f'<div class="prose">{"".join(parts)}</div>'

"""A report of one recording: what a model answers about it, what it looked at, and what is odd about the recording.

`write_recording_report` leaves a folder with one page that needs no other file, and its pictures as PNG files.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import __version__
from .answered_recording import Reading, Spectra, check_decoder, measure_spectra, read_recording
from .channels_neurolm import join_words
from .figures import perplexity
from .inspection import inspect_recording
from .occlusion import window_importance
from .page import Html, bullets, paragraph, picture, section, table, write_page
from .pipeline_neurolm import EEGQuestionAnsweringPipeline
from .recording_figures import (
    plot_answers,
    plot_channel_seconds,
    plot_filtering,
    plot_token_map,
    plot_topography,
    plot_traces,
    spread,
)
from .stages import bare_language_model
from .validation import plot_reconstructed


if TYPE_CHECKING:
    from .modeling_neurolm import NeuroLMVQModel

# What a page shows of a long recording: it stays a few megabytes.
WINDOWS_ASKED = 1000
WINDOWS_SHOWN = 3
TRACE_SECONDS = 12
TOKEN_COLUMNS = 240
LISTED_AT_MOST = 8
# Of the table of one window's tokens.
CODES_OF_A_WINDOW = 640
SECONDS_OF_A_TABLE = 8
MARKS_AT_MOST = 12


def write_recording_report(
    pipe: EEGQuestionAnsweringPipeline,
    recording: Any,
    output: str | Path,
    *,
    task: str | None = None,
    question: str | None = None,
    candidate_answers: Sequence[str] | None = None,
    unknown_channels: str | None = None,
    unit: str | None = None,
    tokenizer: "NeuroLMVQModel | None" = None,
    windows_at_most: int = WINDOWS_ASKED,
) -> Path:
    """Writes a report of one recording: `index.html`, which needs no other file, and the pictures as PNG files.

    Args:
        pipe: `pipeline("eeg-question-answering")`.
        recording, task, question, candidate_answers, unknown_channels, unit: as in a call of the pipeline; answers
            must be allowed ones.
        output: folder, which is made.
        tokenizer: the neural tokenizer that the model was made with, whose decoder draws reconstructions; a NeuroLM
            itself has none.
        windows_at_most: of more windows, so many are asked about, evenly spread.

    Returns:
        The path of `index.html`.

    Raises:
        ValueError: no allowed answers, several epochs, a tokenizer of other codes; what a call of the pipeline raises.
        ImportError: matplotlib is missing.
    """
    asked = {"task": task, "question": question, "candidate_answers": candidate_answers}
    asked |= {"unknown_channels": unknown_channels, "unit": unit}
    info = inspect_recording(recording) if isinstance(recording, (str, os.PathLike)) else None
    if tokenizer is not None:
        check_decoder(tokenizer, bare_language_model(pipe.model).eeg_encoder)
    reading = read_recording(pipe, recording, asked, info, windows_at_most)
    spectra = measure_spectra(reading, recording, asked)
    output = Path(output)
    sections = [
        _oddities_section(reading, spectra),
        _answers_section(reading, output),
        *(
            _window_section(reading, output, number, window)
            for number, window in enumerate(reading.most_confident(WINDOWS_SHOWN), 1)
        ),
        _spectrum_section(reading, spectra, output),
        _tokens_section(reading, output),
        _reconstruction_section(reading, tokenizer, output),
        _recording_section(reading),
        _provenance_section(reading),
    ]
    return write_page(output, _title(reading), sections, lead=reading.asked.question.text.removeprefix("Question: "))


# Sections --------------------------------------------------------------------------------------------


def _title(reading: Reading) -> str:
    return f"{_name(reading)}: answers of {_model_name(reading.pipe)}"


def _name(reading: Reading) -> str:
    return Path(reading.info.path).name if reading.info else reading.prepared.report.source


def _model_name(pipe: EEGQuestionAnsweringPipeline) -> str:
    source = str(pipe.model.config.name_or_path)
    return (Path(source).name if Path(source).is_dir() else source) or "the model"


def _answers_section(reading: Reading, output: Path) -> Html:
    given = reading.probabilities.argmax(axis=1)
    windows = len(given)
    rows = [
        (answer, f"{(given == place).sum():,}", f"{(given == place).mean():.0%}", f"{mean:.2f}")
        for place, (answer, mean) in enumerate(zip(reading.answers, reading.probabilities.mean(axis=0), strict=True))
    ]
    times = np.array([reading.time(window) for window in range(windows)])
    figure = plot_answers(times[:, 0], times[:, 1], reading.probabilities, reading.answers, reading.seconds)
    alt = f"Answers over the recording: {', '.join(f'{name} in {count} windows' for name, count, *_ in rows)}."
    parts = [
        table(("Answer", "Windows", "Share", "Mean probability"), rows, caption=_asked_about(reading), numbers=True),
        picture(output, "answers", figure, alt, "Each line is a window; its place says when, its height how probable."
                if len(reading.answers) == 2 else "Each column is a window."),
    ]  # fmt: skip
    return section("Answers", *parts)


def _asked_about(reading: Reading) -> str:
    windows, (start, end) = len(reading.spans), reading.time(0)
    said = f"{windows:,} windows of {end - start:g} s"
    if windows < reading.of_all:
        said += f", evenly spread among the {reading.of_all:,} of the recording; the others were left out"
    return f"{said}."


def _oddities_section(reading: Reading, spectra: Spectra) -> Html:
    """What a reader must know before believing the answers."""
    config, report = reading.pipe.model.config, reading.prepared.report
    doubts = []
    if config.stage != "instruction-tuned" and not hasattr(reading.pipe.model, "peft_config"):
        doubts.append("The model was never instruction-tuned: its answers mean nothing.")
    if not config.was_tuned_on(reading.asked.question.text, reading.answers):
        doubts.append("The model was not tuned on this question with these answers.")
    if len(np.unique(reading.probabilities.argmax(axis=1))) == 1 and len(reading.spans) > 1:
        doubts.append("Every window got the same answer.")
    problems = [*(reading.info.problems if reading.info else []), *report.warnings]
    if report.seconds_left_over:
        problems.append(f"{report.seconds_left_over:.3g} s at the end are in no window.")
    if report.dropped:
        left_out = join_words(f"{name} ({reason})" for name, reason in report.dropped)
        problems.append(f"Left out: {left_out}.")
    for hertz in spectra.mains_left:
        taken = "no mains frequency" if spectra.notch_hz is None else f"{spectra.notch_hz:g} Hz"
        problems.append(
            f"A line at {hertz:g} Hz is left, for the recipe took out {taken}: where these are the mains of the "
            f"recording, set notch_frequency={hertz:g} of the feature extractor."
        )
    if spectra.why_not is not None:
        problems.append(f"There is no spectrum before the filters: {spectra.why_not}")
    parts = [paragraph(doubt, kind="warning") for doubt in doubts]
    parts.append(bullets(dict.fromkeys(problems)) if problems else paragraph("Nothing was odd about the recording."))
    return section("What to know first", *parts)


def _window_section(reading: Reading, output: Path, number: int, window: int) -> Html:
    """Traces around a window, and what mattered for its answer."""
    start, end = reading.time(window)
    found = window_importance(reading.pipe, reading.asked, reading.extractor, reading.prepared, start)
    heading = f"Window {start:g} to {end:g} s: {found.answer}, {found.probability:.2f}"
    parts = [_traces(reading, output, number, window)]
    names = list(found.channels)
    values = np.array(list(found.channels.values()))
    if np.isfinite(values).any():
        figure, missing = plot_topography(found.channels)
        order = np.argsort(-np.nan_to_num(values))
        alt = f"Importance of the channels; most for the answer: {_listed(names, values, order[:3])}; "
        alt += f"most against it: {_listed(names, values, order[::-1][:3])}."
        caption = (
            "How far the log-odds of the answer fall when a channel is left out of what the model reads: orange and "
            "positive, it spoke for the answer; blue and negative, against it."
        )
        if missing:
            caption += f" Not on the map, for they have no place of their own there: {', '.join(missing)}."
        parts.append(picture(output, f"channels-{number}", figure, alt, caption))
    if np.isfinite(found.channel_seconds).any():
        figure = plot_channel_seconds(found.channel_seconds, names, found.seconds, found.start)
        place = np.unravel_index(np.nanargmax(np.abs(found.channel_seconds)), found.channel_seconds.shape)
        alt = f"Importance by channel and second; largest at {names[place[0]]}, second {start + int(place[1]):g}: "
        alt += f"{found.channel_seconds[place]:+.2f}."
        caption = "Above, each second left out; below, each channel in each second left out."
        parts.append(picture(output, f"channel-seconds-{number}", figure, alt, caption))
    return section(heading, *parts)


def _listed(names: Sequence[str], values: NDArray[np.float64], order: NDArray[np.int64]) -> str:
    return ", ".join(f"{names[place]} {values[place]:+.2f}" for place in order)


def _traces(reading: Reading, output: Path, number: int, window: int) -> Html:
    rate, (first, last) = reading.extractor.sampling_rate, reading.spans[window]
    wanted = max(last - first, TRACE_SECONDS * rate)
    begin = max(0, min((first + last - wanted) // 2, reading.prepared.n_samples - wanted))
    stop = min(begin + wanted, reading.prepared.n_samples)
    shown, free_from = [], 0
    for other, (from_, to) in enumerate(reading.spans):
        # windows that overlap the one in question, or one another, would be written over each other
        clear = other == window or (from_ >= free_from and (to <= first or from_ >= last))
        if clear and from_ < stop and to > begin:
            shown.append((from_ / rate, to / rate, reading.answer(other)))
            free_from = to
    marks = [(onset, text) for onset, _, text in reading.prepared.annotations if begin / rate <= onset < stop / rate]
    figure = plot_traces(
        reading.microvolts(begin, stop), reading.prepared.ch_names, rate, begin / rate, shown, marks[:MARKS_AT_MOST]
    )
    said = "; ".join(f"{left:g} to {right:g} s {text}" for left, right, text in shown)
    caption = f"{begin / rate:g} to {stop / rate:g} s of {reading.seconds:.4g} s, as the model reads them; above each "
    caption += "window its likeliest answer with the probability."
    if len(marks) > MARKS_AT_MOST:
        caption += f" Of {len(marks)} annotations the first {MARKS_AT_MOST} are shown."
    return picture(
        output,
        f"traces-{number}",
        figure,
        f"Traces of {len(reading.prepared.ch_names)} channels with answers: {said}.",
        caption,
    )


def _spectrum_section(reading: Reading, spectra: Spectra, output: Path) -> Html:
    notch, highest = spectra.notch_hz, spectra.frequencies[-1]
    caption = f"Power in the {spectra.seconds:.3g} s in the middle: median over channels, and the middle 80% of them. "
    caption += f"Steps: {join_words(reading.prepared.report.steps_applied)}."
    figure = plot_filtering(spectra.frequencies, spectra.after, spectra.before, notch)
    alt = f"Power spectrum up to {highest:g} Hz before and after the preprocessing"
    alt += f"; mains at {notch:g} Hz taken out." if notch else "."
    return section("Spectrum", picture(output, "spectrum", figure, alt, caption))


def _tokens_section(reading: Reading, output: Path) -> Html:
    if not reading.codes:
        return section("Tokens", paragraph("The model was saved without the codebook of its tokenizer."))
    counts = Counter(np.concatenate([codes.ravel() for codes in reading.codes]).tolist())
    total, names = sum(counts.values()), reading.prepared.ch_names
    size = reading.pipe.model.config.eeg_config.codebook_size
    even = perplexity(np.array(list(counts.values()), dtype=float))
    said = f"The tokens of these windows are {len(counts):,} of the {size:,} codes, with a perplexity of {even:,.1f}."
    columns, seconds = [], []
    chosen = _apart(reading.spans)
    per_window = reading.codes[0].shape[1]
    chosen = [chosen[place] for place in spread(len(chosen), max(1, TOKEN_COLUMNS // per_window))]
    for window in chosen:
        columns.append(reading.codes[window])
        seconds += [reading.time(window)[0] + second for second in range(per_window)]
    codes = np.concatenate(columns, axis=1)
    rarity = -np.log2(np.vectorize(counts.get)(codes) / total)
    row, column = np.unravel_index(rarity.argmax(), rarity.shape)
    caption = (
        "Each cell is the token of a channel in a second; the brighter, the rarer it is in this recording. Where "
    )
    caption += "rare ones come together, have a look at the traces."
    if len(seconds) < reading.seconds - per_window:
        caption += f" {len(seconds)} of {reading.seconds:.0f} s are shown, in windows evenly spread."
    alt = f"Rarity of tokens by channel and second; the rarest at {names[row]}, second {seconds[column]:g}."
    listed = [(str(code), f"{count:,}", f"{count / total:.1%}") for code, count in counts.most_common(LISTED_AT_MOST)]
    return section(
        "Tokens",
        paragraph(said),
        picture(output, "tokens", plot_token_map(rarity, names, seconds), alt, caption),
        table(("Code", "Patches", "Share"), listed, caption="The most frequent codes", numbers=True),
        *_tokens_of_a_window(reading),
    )


def _tokens_of_a_window(reading: Reading) -> list[Html]:
    window = reading.most_confident(1)[0]
    codes, (start, end) = reading.codes[window], reading.time(window)
    if codes.size > CODES_OF_A_WINDOW or codes.shape[1] > SECONDS_OF_A_TABLE:
        return []
    header = ("Channel", *(f"{start + second:g} s" for second in range(codes.shape[1])))
    rows = [(name, *map(str, of_channel)) for name, of_channel in zip(reading.prepared.ch_names, codes, strict=True)]
    return [table(header, rows, caption=f"The codes of the window from {start:g} to {end:g} s", numbers=True)]


def _apart(spans: Sequence[tuple[int, int]]) -> list[int]:
    """Indices of windows that do not overlap."""
    chosen, free_from = [], 0
    for place, (first, last) in enumerate(spans):
        if first >= free_from:
            chosen.append(place)
            free_from = last
    return chosen


def _reconstruction_section(reading: Reading, tokenizer: "NeuroLMVQModel | None", output: Path) -> Html:
    heading = "Reconstruction"
    if tokenizer is None:
        said = "Not drawn: a NeuroLM holds no decoder. Give the neural tokenizer that it was made with."
        return section(heading, paragraph(said))
    window = reading.most_confident(1)[0]
    start, end = reading.time(window)
    segment = reading.extractor.segment_at(reading.prepared, *reading.spans[window])
    batch = reading.extractor.collate([[segment]], [], "pt")
    inputs = {name: tensor.to(tokenizer.device) for name, tensor in batch.items()}
    inputs["input_values"] = inputs["input_values"].to(tokenizer.dtype)
    del inputs["eeg_segment_ids"]
    with torch.no_grad():
        outputs = tokenizer.eval()(**inputs)
    parts = [
        picture(
            output,
            "reconstruction",
            plot_reconstructed(outputs, reading.prepared.ch_names),
            f"Signal and reconstruction from its tokens, {start:g} to {end:g} s.",
            f"{start:g} to {end:g} s, z-scored, and what the neural tokenizer makes of it through its codes.",
        )
    ]
    return section(heading, *parts)


def _recording_section(reading: Reading) -> Html:
    report, info = reading.prepared.report, reading.info
    facts = [("Source", _name(reading))]
    if info is not None:
        facts += [("Format", info.format), ("Size", f"{info.bytes / 1e6:.1f} MB")]
    facts += [
        ("Length", f"{reading.seconds:.4g} s"),
        ("Sampling rate", f"{report.sampling_rate:g} Hz"),
        ("Unit as read", report.unit),
    ]
    if info is not None and info.annotations:
        shown = list(info.annotations.items())[:LISTED_AT_MOST]
        more = f" and {len(info.annotations) - len(shown)} more" if len(info.annotations) > len(shown) else ""
        facts.append(("Annotations", join_words(f"{text} x {count}" for text, count in shown) + more))
    channels = []
    for original, name in report.kept:
        remarks = [word for word, found in (("flat", report.flat), ("clipped", report.clipped)) if name in found]
        amplitude = report.amplitude.get(name)
        channels.append(
            (original, name, "" if amplitude is None else f"{amplitude:.3g} µV", ", ".join(remarks) or "–")
        )
    caption = "Channels that were read; amplitudes are robust (1.4826 x median absolute deviation), after filtering"
    return section(
        "The recording",
        table(("Fact", "Value"), facts, caption="What is in the recording"),
        table(("In the file", "Read as", "Amplitude", "Remarks"), channels, caption=caption),
    )


def _provenance_section(reading: Reading) -> Html:
    question, report = reading.asked.question, reading.prepared.report
    facts = [
        ("Model", _model_name(reading.pipe)),
        ("Question", question.text),
        ("Answers", ", ".join(question.answers)),
        ("Windows", _asked_about(reading)),
        ("Preprocessing", join_words(report.steps_applied)),
        ("Skipped", join_words(f"{step} ({reason})" for step, reason in report.steps_skipped) or "nothing"),
        ("Made by", f"neurolm_hf {__version__}"),
    ]
    said = "Research software: nothing here is a medical device or a diagnosis."
    return section("How this was made", table(("What", "Value"), facts), paragraph(said))

"""What happens when something on the page is used: each handler yields what changes, component by component.

What a visitor has opened comes in and goes out as the state of that visitor's session. Nothing of it is kept here.
"""

import functools
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import gradio as gr
import pictures
import uploads
import visit
import words
from layout import AS_WRITTEN, KEPT_SECONDS, OWN_QUESTION, Parts

from neurolm_hf.pipeline_neurolm import EEGQuestionAnsweringPipeline
from neurolm_hf.simulation import simulate_recordings


P = ParamSpec("P")
Changes = dict[Any, Any]
_EXAMPLE_SECONDS = 64


def in_words(notice: str) -> Callable[[Callable[P, Iterator[Changes]]], Callable[P, Iterator[Changes]]]:
    """Errors of a handler become a sentence in this part of the page: ours, never a traceback."""

    def wrap(handler: Callable[P, Iterator[Changes]]) -> Callable[P, Iterator[Changes]]:
        @functools.wraps(handler)
        def guarded(*arguments: P.args, **named: P.kwargs) -> Iterator[Changes]:
            place = getattr(arguments[0].parts, notice)  # type: ignore[attr-defined]
            try:
                yield from handler(*arguments, **named)
            except (ImportError, ValueError) as error:
                yield {place: words.notice(str(error))}
            except Exception:
                logging.getLogger(__name__).exception("%s failed, and the fault is ours", handler.__name__)
                yield {place: words.notice("This did not work, and the fault is ours. Try another recording.")}

        return guarded

    return wrap


class Handlers:
    """The events of the page.

    Args:
        pipe: the model that is asked.
        parts: of the page.
        upload_folder: where the web server puts uploads.
    """

    def __init__(self, pipe: EEGQuestionAnsweringPipeline, parts: Parts, upload_folder: Path):
        self.pipe, self.parts, self.upload_folder = pipe, parts, upload_folder

    def connect(self) -> None:
        """Ties the handlers to the components, on the page that is being built."""
        parts = self.parts
        # one queue for all that computes: a small machine does one thing at a time
        queued: dict[str, Any] = {"concurrency_id": "computing", "concurrency_limit": 1, "api_visibility": "private"}
        place = [parts.opened, parts.start, parts.choice]
        window = [parts.traces, parts.start, parts.ask_notice, parts.answered]
        report = [parts.opened, parts.files, parts.upload_notice, parts.found, parts.report, parts.asking, *window]
        progress: dict[str, Any] = {"show_progress_on": parts.upload_notice}
        uploaded = [parts.files, parts.unit, parts.choice]
        parts.files.upload(self.open_upload, uploaded, report, **queued, **progress)
        parts.rest.click(self.open_rest, parts.choice, report, **queued, **progress)
        parts.arithmetic.click(self.open_arithmetic, parts.choice, report, **queued, **progress)
        shown = [part for part in window if part is not parts.start]
        parts.start.input(
            self.show_window,
            [*place, parts.asked_about],
            shown,
            **queued,
            show_progress="hidden",
            trigger_mode="always_last",
        )
        parts.earlier.click(self.show_earlier, place, window, **queued, show_progress="hidden")
        parts.later.click(self.show_later, place, window, **queued, show_progress="hidden")
        parts.choice.change(self.change_question, place, [parts.own, *window], **queued, show_progress="hidden")
        answer = [parts.asked_about, parts.ask_notice, parts.answered, parts.heading, parts.probabilities]
        answer += [parts.tokens, parts.maps]
        parts.ask.click(
            self.ask, [*place, parts.question, parts.answers], answer, **queued, show_progress_on=parts.ask_notice
        )

    @in_words("upload_notice")
    def open_upload(self, files: Sequence[str], unit: str, choice: str) -> Iterator[Changes]:
        """Reads an upload, and removes it."""
        yield self._nothing_open()
        uploads.remove_old(self.upload_folder, KEPT_SECONDS)
        with uploads.taken(files, self.upload_folder) as path:
            extractor = self.pipe.processor.feature_extractor
            opened = visit.read_recording(path, extractor, None if unit == AS_WRITTEN else unit)
        yield self._report(opened, choice)

    def open_rest(self, choice: str) -> Iterator[Changes]:
        """Makes up a recording at rest."""
        yield from self._open_example(0, choice)

    def open_arithmetic(self, choice: str) -> Iterator[Changes]:
        """Makes up a recording of mental arithmetic."""
        yield from self._open_example(1, choice)

    @in_words("upload_notice")
    def _open_example(self, number: int, choice: str) -> Iterator[Changes]:
        yield self._nothing_open()
        with tempfile.TemporaryDirectory() as folder:
            path = simulate_recordings(folder, subjects=1, seconds=_EXAMPLE_SECONDS)[number]
            opened = visit.read_recording(path, self.pipe.processor.feature_extractor)
        yield self._report(opened, choice)

    @in_words("ask_notice")
    def show_window(
        self, opened: visit.Opened | None, start: float, choice: str, asked_about: tuple[int, str] | None
    ) -> Iterator[Changes]:
        """Draws the window that was picked, and leaves the slider alone, which may still be moving."""
        window = self._window(opened, start, choice)
        changes = self._shown(window)
        del changes[self.parts.start]
        # a slider that moved until someone asked is drawn after the answer
        if asked_about == (window.start, choice):
            del changes[self.parts.answered]
        yield changes

    @in_words("ask_notice")
    def show_earlier(self, opened: visit.Opened | None, start: float, choice: str) -> Iterator[Changes]:
        """One window back."""
        window = self._window(opened, start, choice)
        yield self._shown(self._window(opened, window.start - window.seconds, choice))

    @in_words("ask_notice")
    def show_later(self, opened: visit.Opened | None, start: float, choice: str) -> Iterator[Changes]:
        """One window on."""
        window = self._window(opened, start, choice)
        yield self._shown(self._window(opened, window.start + window.seconds, choice))

    @in_words("ask_notice")
    def change_question(self, opened: visit.Opened | None, start: float, choice: str) -> Iterator[Changes]:
        """Another question may want other windows and other channels."""
        yield {self.parts.own: gr.update(visible=choice == OWN_QUESTION)}
        yield self._shown(self._window(opened, start, choice))

    @in_words("ask_notice")
    def ask(
        self, opened: visit.Opened | None, start: float, choice: str, question: str | None, answers: str | None
    ) -> Iterator[Changes]:
        """The answer and the tokens first; what mattered takes many more passes of the model."""
        parts = self.parts
        yield {
            parts.ask_notice: words.waiting("The model reads the window."),
            parts.answered: gr.update(visible=False),
        }
        asked = visit.read_question(None if choice == OWN_QUESTION else choice, question or "", answers or "")
        window = visit.find_window(self.pipe, _open(opened), asked, start)
        probabilities = visit.answer(self.pipe, window)
        yield {
            parts.asked_about: (window.start, choice),
            parts.ask_notice: "",
            parts.answered: gr.update(visible=True),
            parts.heading: words.answer_heading(window, probabilities),
            parts.probabilities: probabilities,
            parts.tokens: words.token_table(window, visit.tokens(self.pipe, window)),
            parts.maps: words.waiting(
                "Looking for what mattered: the model reads the window without each part in turn."
            ),
        }
        try:
            found = visit.importance(self.pipe, window)
        except ValueError as error:
            yield {parts.maps: words.notice(str(error))}
            return
        head, patches, unplaced = pictures.maps(found)
        yield {
            parts.maps: words.importance_text(window, found.answer, unplaced)
            + words.beside(
                words.picture(head, f"A map of the head: how much each channel mattered for {found.answer}."),
                words.picture(patches, f"How much each channel in each second mattered for {found.answer}."),
            )
        }

    def _nothing_open(self) -> Changes:
        """The page before anything is opened: what was open is forgotten, and the files are no longer listed."""
        parts = self.parts
        hidden = gr.update(visible=False)
        return {
            parts.opened: None,
            parts.files: None,
            parts.upload_notice: words.waiting("Reading the recording."),
            parts.found: hidden,
            parts.traces: "",
            parts.ask_notice: "",
            parts.answered: hidden,
        }

    def _report(self, opened: visit.Opened, choice: str) -> Changes:
        parts = self.parts
        is_readable = opened.prepared is not None
        changes = {
            parts.opened: opened,
            parts.upload_notice: "",
            parts.found: gr.update(visible=True),
            parts.report: words.report(opened),
            parts.asking: gr.update(visible=is_readable),
        }
        if not is_readable:
            return changes
        try:
            return changes | self._shown(self._window(opened, None, choice))
        except ValueError as error:
            # the report is there to see, whatever the question lacks
            return changes | {parts.traces: "", parts.ask_notice: words.notice(str(error))}

    def _window(self, opened: visit.Opened | None, start: float | None, choice: str) -> visit.Window:
        # where a window lies does not depend on the words of an own question
        task = None if choice == OWN_QUESTION else choice
        question = visit.Question(task) if task else visit.Question(question="?", candidate_answers=("Yes", "No"))
        return visit.find_window(self.pipe, _open(opened), question, start)

    def _shown(self, window: visit.Window) -> Changes:
        """The traces of a window; an answer about another window goes."""
        parts = self.parts
        text = f"The traces of {len(window.recording.ch_names)} channels, {words.span(window)} being the window."
        return {
            parts.traces: words.picture(pictures.traces(window), text),
            parts.start: gr.update(maximum=max(window.last_start, 1), value=window.start),
            parts.ask_notice: "",
            parts.answered: gr.update(visible=False),
        }


def _open(opened: visit.Opened | None) -> visit.Opened:
    if opened is None:
        raise ValueError("The recording is no longer here. Upload it again.")
    return opened

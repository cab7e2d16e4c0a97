"""`pipeline("eeg-question-answering")`: recordings and questions in, answers with their probabilities out.

This file is saved with a model and runs where the neurolm_hf package is not installed.
"""

import copy
import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers.pipelines.base import ChunkPipeline
from transformers.pipelines.pt_utils import PipelineChunkIterator
from transformers.utils import logging

from .processing_neurolm import (
    EEGFeatureExtractor,
    EEGSegment,
    NeuroLMProcessor,
    PreparedEEG,
    continuation_ids,
    is_epochs,
    is_lettered,
    write_completion,
    write_prompt,
)


logger = logging.get_logger(__name__)

# Tokens that a free answer may take where nothing says how long the allowed ones are.
FREE_TOKENS = 32
# Of an array in place of a recording.
ARRAY_KEYS = {"eeg", "ch_names", "sampling_rate", "unit"}


class EEGAnswers(list):
    """The answers about one recording, in order of time: a list of dicts, one a window.

    Each has `start` and `end` (seconds of the recording), `answer`, `probabilities` (answer -> probability), and
    `epoch` where the recording is `mne.Epochs`; with `generate`, `written` as well, and `parsed`: the allowed answer
    that was written, or None.
    """

    def to_frame(self) -> Any:
        """A `pandas.DataFrame`, one row a window; probabilities in columns `p(answer)`.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("A table needs pandas: pip install pandas", name="pandas") from error
        return pandas.DataFrame(self.rows(), columns=self._columns())

    def rows(self) -> list[dict[str, Any]]:
        """The rows of that table: a dict a window, in which no value is a dict."""
        rows = []
        for window in self:
            row = {name: value for name, value in window.items() if name != "probabilities"}
            rows.append(row | {f"p({name})": value for name, value in window.get("probabilities", {}).items()})
        return rows

    def to_csv(self, path: str | os.PathLike) -> None:
        """The same table as a CSV file."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns())
            writer.writeheader()
            writer.writerows(self.rows())

    def annotate(self, raw: Any) -> None:
        """Adds an annotation for each window to the `mne.io.Raw` that was asked about, so that its browser shows them.

        An annotation reads `answer probability`, such as `REM 0.87`.

        Raises:
            ValueError: the answers are about epochs, or reach beyond the end of this recording.
        """
        if not self:
            return
        if "epoch" in self[0]:
            raise ValueError("These answers are about epochs: annotate the Raw that they were cut from yourself.")
        seconds = raw.n_times / raw.info["sfreq"]
        if self[-1]["end"] > seconds + 1:
            raise ValueError(f"The answers reach until {self[-1]['end']:g} s, this recording ends at {seconds:g} s.")
        raw.annotations.append(
            # MNE counts annotations of a Raw from the start of its acquisition
            [window["start"] + raw.first_time for window in self],
            [window["end"] - window["start"] for window in self],
            [self._label(window) for window in self],
        )

    @staticmethod
    def _label(window: dict[str, Any]) -> str:
        if "probabilities" not in window:
            return str(window["written"])
        return f"{window['answer']} {window['probabilities'][window['answer']]:.2f}"

    def _columns(self) -> list[str]:
        return list(self.rows()[0]) if self else ["start", "end", "answer"]


@dataclass(frozen=True)
class Question:
    """What is asked about every window.

    Attributes:
        text: the question, from `Question: ` on.
        answers: the allowed ones; none where the model writes freely.
        window_seconds: of a window; None: the feature extractor's.
        channels: to read, in this order; None: all of the recording but `drop_channels`.
        unknown_channels: what to do about names outside the vocabulary where the caller does not say, `raise` or
            `drop`.
    """

    text: str
    answers: tuple[str, ...]
    window_seconds: float | None = None
    channels: tuple[str, ...] | None = None
    drop_channels: tuple[str, ...] = ()
    unknown_channels: str = "raise"


@dataclass
class Asked:
    """What the rows of a call have in common, in token ids.

    Attributes:
        question: what is asked.
        prefix: token ids of the examples, with placeholders for their EEG.
        examples: their EEG.
        prompt: token ids after the EEG of a window.
        completions: token ids of each allowed answer.
    """

    question: Question
    prompt: list[int]
    completions: list[list[int]]
    prefix: list[int] = field(default_factory=list)
    examples: list[EEGSegment] = field(default_factory=list)


class EEGQuestionAnsweringPipeline(ChunkPipeline):
    """Asks a NeuroLM about EEG: `pipe("night.edf", task="HMC")`.

    A recording is a path to a file that MNE reads, an `mne.io.Raw`, `mne.Epochs` (each epoch on its own), or a dict
    with `eeg` (channels, samples), `ch_names`, `sampling_rate` and `unit`. It is prepared as the model's
    feature extractor says, cut into windows, and each window is asked about. Who asks one recording many things
    prepares it once: what the model's feature extractor `prepare`d is a recording too. A list gives a list; a
    generator or a dataset gives an iterator, which reads recordings as it goes (put `tqdm` around it for progress).

    Arguments of a call, or (`task` aside) of `pipeline(...)` for all calls:

    - **task** -- name of a task in the model's config: its question, answers, channels and length of windows. May be
      left out where the model knows one task.
    - **question**, **candidate_answers** -- any other question. Without candidates the model writes freely.
    - **window_seconds**, **stride_seconds** -- of the windows, in place of the task's; a stride below the length makes
      them overlap.
    - **examples** -- few-shot: (recording, start, answer) for a window from that second on, or (recording, answer) for
      a recording of one window; the model reads them with their answers before each window that it is asked about.
    - **length_normalization** -- the mean log-likelihood of an answer's tokens in place of the sum, which favours
      short answers.
    - **prior** -- answer -> probability, of [`measure_prior`]: the model's preference for some answers, taken out.
    - **generate** -- let the model write as well (greedily): `written` and `parsed` stand beside the probabilities.
    - **unknown_channels** -- `raise` or `drop`, in place of what the task says.
    - **unit** -- of the values of files and MNE objects, such as `uV`, where MNE's volts are wrong.
    - **batch_size** -- windows that are read at a time, of several recordings too; **device**, **dtype** as always.

    An answer is scored as a whole, its end of text included: EEG, question and all answers are read in one pass
    ([`NeuroLMForCausalLM.score_answers`]), and probabilities are among the allowed answers.

    Returns:
        [`EEGAnswers`] for each recording.

    Raises:
        ValueError: no such task, answers that are none of it, channels the recording lacks; what the processor raises.
    """

    # what the factory has to load; the base class declares them as None
    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_feature_extractor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _pipeline_calls_generate = False

    model: Any
    processor: NeuroLMProcessor

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        if any("ForCausalLM" not in name for name in self.model.config.architectures or []):
            raise ValueError(
                f"{self.model.config.name_or_path} holds a {self.model.config.architectures[0]}, which has no words "
                "to answer with: open a NeuroLMForCausalLM."
            )
        self.model.eval()

    def measure_prior(self, recordings: Sequence[Any], **asked: Any) -> dict[str, float]:
        """How likely the model finds each answer whatever it reads: for `prior` of later calls.

        Args:
            recordings: in which every answer is as frequent as the others, such as training recordings of a balanced
                task. Never those that are to be judged.
            asked: as in a call.

        Returns:
            answer -> geometric mean of its probability over all windows, normalised.
        """
        if not recordings:
            raise ValueError("A prior needs recordings, at least one.")
        own = self._postprocess_params.pop("prior", None)
        try:
            answers = [window for one in self(list(recordings), **{**asked, "prior": None}) for window in one]
        finally:
            if own is not None:
                self._postprocess_params["prior"] = own
        if "probabilities" not in answers[0]:
            raise ValueError("A prior is of allowed answers: give candidate_answers, or a task.")
        probabilities = torch.tensor([list(window["probabilities"].values()) for window in answers])
        mean = torch.softmax(probabilities.double().clamp(min=1e-12).log().mean(0), dim=0)
        return dict(zip(answers[0]["probabilities"], mean.tolist(), strict=True))

    def prepare(self, recording: Any, **asked: Any) -> tuple[Asked, EEGFeatureExtractor, list[PreparedEEG]]:
        """What a call would read, before it is cut into windows.

        Args:
            recording, asked: as in a call.

        Returns:
            What is asked, in token ids; the feature extractor that cuts as this question wants it; the recording, or
            each of its epochs, with the channels that the question is about.
        """
        preprocess, _, _ = self._sanitize_parameters(**asked)
        settled = self.settle(**{**self._preprocess_params, **preprocess})
        reading = (settled["asked"].question, settled["unknown_channels"], settled["unit"])
        return settled["asked"], settled["extractor"], _prepare(settled["extractor"], recording, *reading)

    @torch.no_grad()
    def score(self, asked: Asked, segments: Sequence[EEGSegment]) -> torch.Tensor:
        """How likely each allowed answer is about each window, as a call without arguments of its own has it.

        Args:
            asked: of `prepare`, with allowed answers.
            segments: windows, which may differ in their channels and in their length.

        Returns:
            (windows, answers), float64 on the CPU: log-likelihoods, of which the softmax is the probabilities.
        """
        inputs = self._inputs(asked, [[*asked.examples, segment] for segment in segments])
        inputs = self._ensure_tensor_on_device(inputs, self.device)
        return _adjusted(
            self.model.score_answers(asked.completions, **inputs).cpu(), asked, **self._postprocess_params
        )

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict, dict, dict]:
        of_question = ("task", "question", "candidate_answers", "window_seconds", "examples")
        of_reading = ("stride_seconds", "unknown_channels", "unit")
        of_answer = ("length_normalization", "prior")
        known = (*of_question, *of_reading, *of_answer, "generate")
        if unknown := sorted(parameters.keys() - set(known)):
            raise TypeError(f"unknown argument(s) {', '.join(unknown)}; there are {', '.join(known)}.")
        given = {name: value for name, value in parameters.items() if value is not None}
        preprocess = {name: value for name, value in given.items() if name in (*of_question, *of_reading)}
        if "task" in given and "question" not in given:
            # a call's task takes the place of a question that was given for all calls
            preprocess |= {"question": None, "candidate_answers": None}
        postprocess = {name: value for name, value in given.items() if name in of_answer}
        return preprocess, {name: given[name] for name in ("generate",) if name in given}, postprocess

    def settle(
        self,
        task: str | None = None,
        question: str | None = None,
        candidate_answers: Sequence[str] | None = None,
        window_seconds: float | None = None,
        examples: Sequence[tuple[Any, ...]] = (),
        stride_seconds: float | None = None,
        unknown_channels: str | None = None,
        unit: str | None = None,
    ) -> dict[str, Any]:
        """What `preprocess` needs beside a recording: what is asked, in token ids, and who cuts the windows for it.

        Arguments as of a call.

        Raises:
            ValueError: what is wrong with them, whatever the recording.
        """
        # an adapter hands this on to the model that it wraps
        self.model.warn_if_untuned()
        asks = self._question(task, question, candidate_answers)
        taught = self.model.config.tasks
        if taught and not self.model.config.was_tuned_on(asks.text):
            logger.warning_once(
                f"The model was never tuned on the question {asks.text!r}, so its answers may mean nothing; it was "
                f"tuned on {', '.join(entry['name'] for entry in taught)}."
            )
        asked = self._asked(asks, examples, window_seconds, unknown_channels, unit)
        extractor = self._extractor(asks, window_seconds, stride_seconds)
        return {"asked": asked, "extractor": extractor, "unknown_channels": unknown_channels, "unit": unit}

    def preprocess(  # type: ignore[override]  # the base class is not typed
        self,
        input_: Any,
        asked: Asked,
        extractor: EEGFeatureExtractor,
        unknown_channels: str | None,
        unit: str | None,
    ) -> Iterator[dict[str, Any]]:
        """One dict a window, of one recording."""
        prepared = _prepare(extractor, input_, asked.question, unknown_channels, unit)
        of_epochs = len(prepared) > 1 or is_epochs(input_)
        spans = [(epoch, *span) for epoch, one in enumerate(prepared) for span in extractor.window_spans(one)]
        for place, (epoch, start, stop) in enumerate(spans):
            yield {
                "segments": [*asked.examples, extractor.segment_at(prepared[epoch], start, stop)],
                "asked": asked,
                "epoch": epoch if of_epochs else None,
                "is_last": place == len(spans) - 1,
            }

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[EEGAnswers]:
        """As the base class, but with the padding that NeuroLM's inputs need."""
        # once a call, for examples are recordings too
        windows = PipelineChunkIterator(inputs, self.preprocess, self.settle(**preprocess_params))
        loader = DataLoader(windows, num_workers=min(num_workers, 1), batch_size=batch_size, collate_fn=self._collate)
        of_recording: list[dict[str, Any]] = []
        for batch in loader:
            outputs = self.forward(batch, **forward_params)
            for row, is_last in enumerate(outputs.pop("is_last")):
                of_recording.append({name: values[row] for name, values in outputs.items()})
                if is_last:
                    yield self.postprocess(of_recording, **postprocess_params)
                    of_recording = []

    def _collate(self, windows: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch of several windows' `preprocess`."""
        asked: Asked = windows[0]["asked"]
        spans = [(window["segments"][-1].start, window["segments"][-1].end) for window in windows]
        return {
            "inputs": self._inputs(asked, [window["segments"] for window in windows]),
            "asked": asked,
            "spans": spans,
            "epochs": [window["epoch"] for window in windows],
            "is_last": [window["is_last"] for window in windows],
        }

    def _inputs(self, asked: Asked, rows: Sequence[Sequence[EEGSegment]]) -> dict[str, Any]:
        """Inputs of the model: a row reads the examples' segments, then that of its own window."""
        ids = [*asked.prefix, self.processor.eeg_token_id, *asked.prompt]
        batch = self.processor.interleave([(ids, segments) for segments in rows])
        batch["input_values"] = batch["input_values"].to(self.model.dtype)
        return dict(batch)

    def _forward(self, input_tensors: dict[str, Any], generate: bool = False) -> Any:  # type: ignore[override]
        inputs, asked = input_tensors["inputs"], input_tensors["asked"]
        count = len(inputs["input_ids"])
        outputs: dict[str, Any] = {"is_last": input_tensors["is_last"]}
        outputs |= {name: input_tensors[name] for name in ("spans", "epochs")}
        outputs["asked"] = [asked] * count
        if asked.completions:
            outputs["scores"] = self.model.score_answers(asked.completions, **inputs)
        if generate or not asked.completions:
            longest = max((len(ids) for ids in asked.completions), default=FREE_TOKENS)
            written = self.model.generate(**inputs, max_new_tokens=longest, do_sample=False)
            new = written[:, inputs["input_ids"].shape[1] :]
            outputs["written"] = [self.processor.decode(row, skip_special_tokens=True).strip() for row in new]
        return outputs

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: list[dict[str, Any]],
        length_normalization: bool = False,
        prior: Mapping[str, float] | None = None,
    ) -> EEGAnswers:
        answers = EEGAnswers()
        for output in model_outputs:
            asked: Asked = output["asked"]
            window = dict(zip(("start", "end"), output["spans"], strict=True))
            if output["epochs"] is not None:
                window["epoch"] = output["epochs"]
            names = asked.question.answers
            if names:
                scores = _adjusted(output["scores"], asked, length_normalization, prior)
                probabilities = torch.softmax(scores, dim=0).tolist()
                window["answer"] = names[int(scores.argmax())]
                window["probabilities"] = dict(zip(names, probabilities, strict=True))
            if "written" in output:
                window["written"] = output["written"]
                if names:
                    window["parsed"] = parse_answer(output["written"], names)
            answers.append(window)
        return answers

    def _question(self, task: str | None, question: str | None, candidate_answers: Sequence[str] | None) -> Question:
        """What is asked, from a task of the config or from the caller's own words."""
        if question is not None:
            if task is not None:
                raise ValueError("Give a task, or a question of your own with its candidate_answers, not both.")
            if isinstance(candidate_answers, str):
                raise ValueError(f"candidate_answers is a list of texts, not the one text {candidate_answers!r}.")
            answers = tuple(candidate_answers or ())
            if not all(isinstance(answer, str) for answer in answers):
                raise ValueError(f"candidate_answers are texts, got {list(answers)}.")
            if len(answers) == 1 or len(set(answers)) < len(answers) or any(not a.strip() for a in answers):
                raise ValueError(f"candidate_answers must be two or more different texts, got {list(answers)}.")
            if len({is_lettered([answer]) for answer in answers}) > 1:
                raise ValueError(f"candidate_answers must all be letters like (A), or none, got {list(answers)}.")
            return Question(question if question.startswith("Question: ") else f"Question: {question}", answers)
        if candidate_answers is not None:
            raise ValueError("candidate_answers belong to a question: give it as `question`.")
        tasks = {entry["name"]: entry for entry in self.model.config.tasks or []}
        known = f"its tasks are {', '.join(tasks)}" if tasks else "it was tuned on no task"
        if task is None and len(tasks) != 1:
            raise ValueError(f"Say which task the model is asked, or give a question: {known}.")
        entry = tasks.get(next(iter(tasks)) if task is None else task)
        if entry is None:
            raise ValueError(f"The model knows no task {task!r}; {known}. Or give a question and candidate_answers.")
        return Question(
            entry["question"],
            tuple(entry["answers"]),
            entry.get("window_seconds"),
            tuple(entry["channels"]) if entry.get("channels") else None,
            tuple(entry.get("drop_channels", ())),
            # channels that a task names are picked, whatever else is there
            entry.get("unknown_channels", "drop" if entry.get("channels") else "raise"),
        )

    def _asked(
        self,
        question: Question,
        examples: Sequence[tuple[Any, ...]],
        window_seconds: float | None,
        unknown_channels: str | None,
        unit: str | None,
    ) -> Asked:
        tokenizer = self.processor.tokenizer
        prompt = continuation_ids(tokenizer, write_prompt(question.text, question.answers))
        end = tokenizer.eos_token
        completions = [continuation_ids(tokenizer, write_completion(answer, end)) for answer in question.answers]
        asked = Asked(question, prompt, completions)
        extractor = self._extractor(question, window_seconds, None)
        for number, example in enumerate(examples):
            if not isinstance(example, (tuple, list)) or len(example) not in (2, 3):
                raise ValueError(f"examples: example {number} is (recording, answer) or (recording, start, answer).")
            recording, *start, answer = example
            if start and not isinstance(start[0], (int, float)):
                raise ValueError(f"examples: the start of example {number} is a number of seconds, not {start[0]!r}.")
            if question.answers and answer not in question.answers:
                raise ValueError(
                    f"examples: {answer!r} of example {number} is none of the answers {', '.join(question.answers)}."
                )
            prepared = _prepare(extractor, recording, question, unknown_channels, unit)
            if start and len(prepared) == 1:
                length = extractor.window_length(len(prepared[0].ch_names)) * extractor.patch_size
                first = round(start[0] * extractor.sampling_rate)
                segments = [extractor.segment_at(prepared[0], first, first + length)]
            else:
                segments = [segment for one in prepared for segment in extractor.cut(one)]
            if len(segments) != 1:
                raise ValueError(
                    f"examples: the recording of example {number} makes {len(segments)} windows, and an example is "
                    "one: say where it starts, (recording, start, answer)."
                )
            asked.examples += segments
            answer_ids = continuation_ids(tokenizer, write_completion(answer, end))
            asked.prefix += [self.processor.eeg_token_id, *prompt, *answer_ids]
        return asked

    def _extractor(
        self, question: Question, window_seconds: float | None, stride_seconds: float | None
    ) -> EEGFeatureExtractor:
        """The model's feature extractor, which cuts as the task or the caller says."""
        extractor = copy.copy(self.processor.feature_extractor)
        seconds = question.window_seconds if window_seconds is None else window_seconds
        if seconds is not None:
            extractor.window_seconds = seconds
        if stride_seconds is not None:
            extractor.stride_seconds = stride_seconds
        extractor.check_settings()
        return extractor


def parse_answer(written: str, answers: Sequence[str]) -> str | None:
    """The allowed answer that a text is, or None: nothing is guessed.

    Case, spaces around it and a full stop at its end do not count, nor does the bracket that a prompt for lettered
    answers has opened.
    """
    said = written.strip().removesuffix(".").strip().casefold()
    if is_lettered(answers):
        said = "(" + said.removeprefix("(")
    return next((answer for answer in answers if answer.casefold() == said), None)


def _prepare(
    extractor: EEGFeatureExtractor, recording: Any, question: Question, unknown_channels: str | None, unit: str | None
) -> list[PreparedEEG]:
    """The recording, or each of its epochs, with the channels that the question is about."""
    if isinstance(recording, PreparedEEG):
        if unit is not None:
            raise ValueError(f"A prepared recording has had its unit: leave unit={unit!r} out.")
        prepared = [recording]
    else:
        prepared = _prepare_anew(extractor, recording, question, unknown_channels, unit)
    if question.channels is not None:
        return [one.pick(question.channels) for one in prepared]
    if not question.drop_channels:
        return prepared
    return [one.pick([name for name in one.ch_names if name not in question.drop_channels]) for one in prepared]


def _prepare_anew(
    extractor: EEGFeatureExtractor, recording: Any, question: Question, unknown_channels: str | None, unit: str | None
) -> list[PreparedEEG]:
    if unknown_channels is None:
        unknown_channels = question.unknown_channels
    if isinstance(recording, np.ndarray):
        raise ValueError(
            "An array does not say what it is: give a dict with eeg (the array), ch_names, sampling_rate and unit."
        )
    arguments: dict[str, Any] = {} if unit is None else {"unit": unit}
    if isinstance(recording, Mapping):
        if wrong := sorted(recording.keys() ^ ARRAY_KEYS):
            raise ValueError(
                f"An array is given as a dict with {', '.join(sorted(ARRAY_KEYS))}; missing or unknown: "
                f"{', '.join(wrong)}."
            )
        arguments = dict(recording)
        recording = arguments.pop("eeg")
    return extractor.prepare(recording, unknown_channels=unknown_channels, **arguments)  # type: ignore[arg-type]


def _adjusted(
    scores: torch.Tensor,
    asked: Asked,
    length_normalization: bool = False,
    prior: Mapping[str, float] | None = None,
) -> torch.Tensor:
    """Log-likelihoods (..., answers) with the length of the answers and the model's preference taken out."""
    scores = scores.double()
    if length_normalization:
        scores = scores / torch.tensor([len(ids) for ids in asked.completions])
    return scores if prior is None else scores - _log_prior(prior, asked.question.answers)


def _log_prior(prior: Mapping[str, float], names: Sequence[str]) -> torch.Tensor:
    if prior.keys() != set(names) or not all(value > 0 for value in prior.values()):
        raise ValueError(f"prior must give each of {', '.join(names)} a probability above 0, got {dict(prior)}.")
    return torch.tensor([prior[name] for name in names], dtype=torch.float64).log()

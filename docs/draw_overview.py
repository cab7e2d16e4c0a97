#!/usr/bin/env python
"""Draws docs/overview.png, the picture of the README, from what `make demo` left in demo-output/.

A held-out window, the codes of its patches, and the answer the demo's model gives about it.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoProcessor

from neurolm_hf.scoring import answer_probabilities
from neurolm_hf.tasks import load_task


DEMO = Path("demo-output")
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#777777"
SHOWN = ("FP1", "F3", "FZ", "C3", "CZ", "T4", "PZ", "O1")


def main() -> None:
    """Draw and save."""
    model = AutoModelForCausalLM.from_pretrained(DEMO / "model", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(DEMO / "model", trust_remote_code=True)
    task = load_task("Workload")
    recording = held_out_recording(model)
    prepared = processor.feature_extractor.prepare(recording)[0]
    rows = [prepared.ch_names.index(name) for name in SHOWN]
    seconds = task.window_seconds
    rate = processor.feature_extractor.sampling_rate
    signal = prepared.values[rows, : seconds * rate] * processor.feature_extractor.scale
    codes = processor.tokenize_eeg(recording, model)[0].view(seconds, -1)[:, rows].T.numpy()
    probabilities = answer_probabilities(model, processor, recording, task)[0]

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), width_ratios=(5, 3, 2.6), layout="constrained")
    draw_traces(axes[0], signal, rate)
    draw_codes(axes[1], codes)
    draw_answer(axes[2], task.question, task.classes, probabilities)
    figure.savefig(Path(__file__).with_name("overview.png"), dpi=150)


def held_out_recording(model: torch.nn.Module) -> str:
    """Mental arithmetic of the first subject whom the model was not trained on."""
    trained = model.config.provenance["data"][0]["subjects"]
    recordings = sorted((DEMO / "recordings").glob("*_2.edf"))
    return str(next(path for path in recordings if path.stem.split("_")[0] not in trained))


def draw_traces(axis: plt.Axes, signal: np.ndarray, rate: int) -> None:
    """Traces above each other, cut into seconds."""
    gap = 6 * np.median(np.abs(signal))
    for index, trace in enumerate(signal):
        axis.plot(np.arange(len(trace)) / rate, trace - index * gap, color=BLUE, linewidth=0.7)
    for second in range(1, signal.shape[1] // rate):
        axis.axvline(second, color=GREY, linewidth=0.8, linestyle=":")
    axis.set(title="1  A recording, cut into patches", xlabel="Seconds", yticks=-gap * np.arange(len(signal)))
    axis.set_yticklabels(SHOWN)
    axis.set_xlim(0, signal.shape[1] / rate)
    axis.spines[["top", "right"]].set_visible(False)


def draw_codes(axis: plt.Axes, codes: np.ndarray) -> None:
    """A tile a patch, with its code."""
    axis.imshow(
        np.unique(codes, return_inverse=True)[1].reshape(codes.shape), cmap="cividis", aspect="auto", alpha=0.4
    )
    for (row, column), code in np.ndenumerate(codes):
        axis.text(column, row, str(code), ha="center", va="center", fontsize=9, color="black")
    axis.set(title="2  Every patch becomes a token", xlabel="Second", yticks=[], xticks=range(codes.shape[1]))


def draw_answer(axis: plt.Axes, question: str, classes: tuple[str, ...], probabilities: np.ndarray) -> None:
    """The question, and a bar an answer."""
    words = question.removeprefix("Question: ")
    axis.barh(range(len(classes)), probabilities, color=[BLUE, ORANGE][: len(classes)], height=0.55)
    for index, probability in enumerate(probabilities):
        axis.text(1.02, index, f"{probability:.2f}", va="center", fontsize=11)
    axis.set(title="3  The model answers", xlabel="Probability", xlim=(0, 1), yticks=range(len(classes)))
    axis.set_yticklabels(classes)
    axis.set_ylim(-0.6, len(classes) + 0.5)
    axis.text(0.03, len(classes) - 0.25, words.replace("segment of", "segment\nof"), fontsize=10, style="italic")
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Draws the pictures of docs/model.md: patches and tokens, who sees whom, text alignment, the three stages.

    python docs/draw_model.py

The traces are simulated, the mask is read from the attention of a small NeuroLM with random weights, and the curve is
the schedule of the paper; nothing here needs data or a trained model.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Rectangle
from numpy.typing import NDArray

from neurolm_hf import NeuroLMConfig, NeuroLMForCausalLM
from neurolm_hf.figures import BLUE, GREEN, ORANGE, PURPLE, SKY, STYLE, VERMILION
from neurolm_hf.simulation import CHANNEL_NAMES, SAMPLING_RATE, simulate_signal


HERE = Path(__file__).parent
SHOWN = ("Fp1", "C3", "C4", "O1")
CHANNEL_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
SECONDS = 4
DRAWN_EVERY = 4  # of the samples: 125 a second
# of the mask: channels, seconds, words after them
CHANNELS, TEXT_TOKENS = 3, 4
GREY, LIGHT = "#666666", "#f2f2f2"
# no date and no random ids: the same picture has the same bytes
SAVED = {"metadata": {"Date": None}, "facecolor": "white"}


def main() -> None:
    """Draw and save all four."""
    figures = {
        "model-patches": draw_patches(),
        "model-mask": draw_mask(visible_tokens()),
        "model-alignment": draw_alignment(),
        "model-stages": draw_stages(),
    }
    for name, figure in figures.items():
        figure.savefig(HERE / f"{name}.svg", **SAVED)


# Patches and tokens ----------------------------------------------------------------


def draw_patches() -> Figure:
    """Above, a recording cut into patches, each with its place in the sequence; below, that sequence."""
    figure, (traces, tokens) = plt.subplots(2, 1, figsize=(6.4, 4.6), height_ratios=(4, 1), layout="constrained")
    start, stop = 10 * SAMPLING_RATE, (10 + SECONDS) * SAMPLING_RATE
    signal = simulate_signal(0, "rest", seconds=20)[:, start:stop:DRAWN_EVERY]
    gap = 130
    for row, (name, colour) in enumerate(zip(SHOWN, CHANNEL_COLOURS, strict=True)):
        trace = signal[CHANNEL_NAMES.index(f"EEG {name}")]
        traces.plot(
            np.arange(trace.size) * DRAWN_EVERY / SAMPLING_RATE,
            trace - trace.mean() - row * gap,
            color=colour,
            linewidth=0.8,
        )
        for second in range(SECONDS):
            place = (second + 0.94, -row * gap + 0.36 * gap)
            traces.text(
                *place, str(second * len(SHOWN) + row + 1), fontsize=9, ha="right", va="center", bbox=label(colour)
            )
    for second in range(1, SECONDS):
        traces.axvline(second, color=GREY, linewidth=1, linestyle=":")
    traces.set(
        title="A patch is one second of one channel", xlabel="Second", xlim=(0, SECONDS), xticks=range(SECONDS + 1)
    )
    traces.set(ylim=(-(len(SHOWN) - 0.35) * gap, 0.75 * gap), yticks=-gap * np.arange(len(SHOWN)))
    traces.set_yticklabels(SHOWN)
    traces.grid(visible=False)

    for index in range(SECONDS * len(SHOWN)):
        second, row = divmod(index, len(SHOWN))
        x = index + 0.6 * second
        tokens.add_patch(Rectangle((x, 0), 0.9, 0.9, color=CHANNEL_COLOURS[row], alpha=0.35, linewidth=0))
        tokens.text(x + 0.45, 0.45, str(index + 1), ha="center", va="center", fontsize=9)
        if row == 0:
            tokens.text(
                x + 0.5 * len(SHOWN), -0.5, f"second {second}", ha="center", va="center", color=GREY, fontsize=10
            )
    tokens.set(
        title="The sequence: all channels of a second, then the next second", xlim=(-0.2, 18.2), ylim=(-0.8, 1.0)
    )
    tokens.axis("off")
    return figure


def label(colour: str) -> dict[str, object]:
    """The box of a number."""
    return {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": colour}


# Who sees whom ----------------------------------------------------------------


def visible_tokens() -> NDArray[np.bool_]:
    """(tokens, tokens): whether the row's token sees the column's, as a NeuroLM's attention has it."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "decoder_num_hidden_layers": 1}
    config = NeuroLMConfig(
        eeg_config={**small, "codebook_size": 8, "codebook_dim": 4},
        text_config={
            "vocab_size": 32,
            "n_embd": 16,
            "n_layer": 1,
            "n_head": 2,
            "n_positions": 32,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        eeg_token_id=31,
        attn_implementation="eager",
    )
    patches = CHANNELS * SECONDS
    seconds = torch.arange(SECONDS).repeat_interleave(CHANNELS)
    inputs = {
        "input_ids": torch.tensor([[31] * patches + list(range(TEXT_TOKENS))]),
        "input_values": torch.randn(1, patches, 200),
        "eeg_channel_ids": torch.arange(CHANNELS).repeat(SECONDS)[None],
        "eeg_time_ids": seconds[None],
        "mm_token_type_ids": torch.cat([seconds + 1, torch.zeros(TEXT_TOKENS, dtype=torch.long)])[None],
    }
    with torch.no_grad():
        attention = NeuroLMForCausalLM(config).eval()(**inputs, output_attentions=True).attentions[0]
    seen: NDArray[np.bool_] = (attention[0, 0] > 0).numpy()
    return seen


def draw_mask(seen: NDArray[np.bool_]) -> Figure:
    """Left, the mask as a matrix; right, what each token has to predict."""
    figure, (mask, targets) = plt.subplots(1, 2, figsize=(6.4, 3.9), width_ratios=(3.4, 3), layout="constrained")
    patches, count = CHANNELS * SECONDS, len(seen)
    second = np.append(np.repeat(np.arange(SECONDS), CHANNELS), np.full(TEXT_TOKENS, -1))
    of_text = np.arange(count) >= patches
    kinds = np.where(seen, 1, 0)  # earlier
    kinds[seen & (second[:, None] == second[None, :]) & ~of_text[:, None]] = 2
    kinds[seen & of_text[:, None] & of_text[None, :]] = 3
    mask.imshow(kinds, cmap=ListedColormap([LIGHT, SKY, ORANGE, GREEN]), vmin=0, vmax=3)
    for edge in np.arange(count + 1) - 0.5:
        mask.axhline(edge, color="white", linewidth=0.8)
        mask.axvline(edge, color="white", linewidth=0.8)
    middles = [*(CHANNELS * np.arange(SECONDS) + (CHANNELS - 1) / 2), patches + (TEXT_TOKENS - 1) / 2]
    names = [*(f"{index} s" for index in range(SECONDS)), "text"]
    mask.set(xticks=middles, yticks=middles, xlabel="is seen", ylabel="sees", title="Who sees whom")
    mask.set_xticklabels(names, fontsize=9)
    mask.set_yticklabels(names, fontsize=9)
    mask.tick_params(length=0)
    mask.grid(visible=False)
    mask.spines[:].set_visible(False)
    kinds_drawn = (("same second", ORANGE), ("earlier", SKY), ("text, causal", GREEN), ("not seen", LIGHT))
    figure.legend(
        handles=[Patch(color=colour, label=name) for name, colour in kinds_drawn], loc="outside lower center", ncols=4
    )
    draw_targets(targets)
    return figure


def draw_targets(axis: Axes) -> None:
    """An arrow from every patch to the one whose code it predicts."""
    for row in range(CHANNELS):
        for column in range(SECONDS):
            last = column == SECONDS - 1
            face = LIGHT if last else CHANNEL_COLOURS[row]
            axis.add_patch(
                Rectangle((column, -row), 0.62, 0.62, facecolor=face, edgecolor=CHANNEL_COLOURS[row], alpha=0.5)
            )
            if not last:
                arrow(axis, (column + 0.64, -row + 0.31), (column + 0.98, -row + 0.31), VERMILION)
        axis.text(-0.15, -row + 0.31, SHOWN[row], ha="right", va="center")
    for column in range(SECONDS):
        axis.text(column + 0.31, 0.85, f"{column} s", ha="center", color=GREY, fontsize=9)
    axis.text(
        1.8,
        -CHANNELS + 0.45,
        "an arrow points to the patch whose code\nis predicted; the last second has none",
        ha="center",
        va="top",
        fontsize=9,
    )
    axis.set(title="What is predicted", xlim=(-0.9, SECONDS - 0.2), ylim=(-CHANNELS - 0.4, 1.3), aspect="equal")
    axis.axis("off")


# Text alignment ----------------------------------------------------------------


def draw_alignment() -> Figure:
    """Left, the adversary; right, how the strength of the reversed gradient grows."""
    figure, (scheme, curve) = plt.subplots(1, 2, figsize=(6.4, 3.3), width_ratios=(4, 2), layout="constrained")
    box(scheme, (0, 3), (2.1, 0.9), "EEG\npatches", LIGHT)
    box(scheme, (2.7, 3), (2.1, 0.9), "encoder", SKY)
    box(scheme, (0, 0.2), (2.1, 0.9), "text\ntokens", LIGHT)
    box(scheme, (2.6, 0.2), (2.3, 0.9), "frozen text\nembedding", LIGHT, dashed=True)
    box(scheme, (5.5, 1.55), (2.1, 0.95), "EEG or\ntext?", ORANGE)
    arrow(scheme, (2.1, 3.45), (2.7, 3.45), GREY)
    arrow(scheme, (2.1, 0.65), (2.6, 0.65), GREY)
    arrow(scheme, (4.9, 0.65), (6.3, 1.52), GREY)
    arrow(scheme, (4.85, 3.3), (6.2, 2.55), GREY)
    arrow(scheme, (6.8, 2.55), (4.85, 3.65), VERMILION, bend=0.25)
    scheme.text(6.0, 3.62, "gradient, reversed", color=VERMILION, fontsize=10, ha="left", va="bottom")
    scheme.set(title="The adversary", xlim=(-0.1, 8.6), ylim=(-0.2, 4.5))
    scheme.axis("off")

    progress = np.linspace(0, 1, 100)
    curve.plot(progress, 2 / (1 + np.exp(-10 * progress)) - 1, color=VERMILION, linewidth=2)
    curve.set(title="Its strength", xlabel="Share of the training done", ylabel="Factor of the reversed gradient")
    curve.set(xlim=(0, 1), ylim=(0, 1.03))
    return figure


# The three stages ----------------------------------------------------------------


def draw_stages() -> Figure:
    """A row a stage: what goes in, what is trained and what is frozen, what has to come out."""
    figure, axis = plt.subplots(figsize=(6.4, 5.4), layout="constrained")
    rows = (
        (
            "1  Neural tokenizer",
            "EEG patches,\ntext beside them",
            [("encoder", True), ("codebook", True), ("decoders", True)],
            "spectrum and\nsignal of a patch",
        ),
        (
            "2  Pre-training",
            "EEG patches,\ntext beside them",
            [("encoder", False), ("language model", True)],
            "every channel's\nnext code",
        ),
        (
            "3  Instruction tuning",
            "EEG patches and\na question",
            [("encoder", False), ("language model", True)],
            "the answer",
        ),
    )
    for index, (title, given, parts, wanted) in enumerate(rows):
        y = -2.3 * index
        axis.text(0, y + 1.25, title, fontsize=12, weight="bold")
        box(axis, (0, y), (2.2, 0.95), given, LIGHT)
        width, x = 4.5 / len(parts), 2.7
        arrow(axis, (2.2, y + 0.47), (2.7, y + 0.47), GREY)
        for name, trained in parts:
            colour = ORANGE if trained else LIGHT
            box(axis, (x, y), (width - 0.12, 0.95), name.replace(" ", "\n"), colour, dashed=not trained)
            x += width
        arrow(axis, (x - 0.1, y + 0.47), (x + 0.4, y + 0.47), GREY)
        box(axis, (x + 0.4, y), (2.3, 0.95), wanted, LIGHT)
    axis.set(xlim=(-0.1, 10.1), ylim=(-5.1, 1.8))
    axis.axis("off")
    trained = Patch(facecolor=ORANGE, alpha=0.45, edgecolor=GREY, label="trained (stage 3: in full, or by an adapter)")
    frozen = Patch(facecolor=LIGHT, edgecolor=GREY, linestyle="--", label="frozen")
    figure.legend(handles=[trained, frozen], loc="outside lower center", ncols=2)
    return figure


def box(
    axis: Axes, corner: tuple[float, float], size: tuple[float, float], text: str, colour: str, dashed: bool = False
) -> None:
    """A rounded box with a text in its middle."""
    axis.add_patch(
        FancyBboxPatch(
            corner,
            *size,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=(colour, 0.45) if colour != LIGHT else LIGHT,
            edgecolor=GREY,
            linestyle="--" if dashed else "-",
        )
    )
    axis.text(corner[0] + size[0] / 2, corner[1] + size[1] / 2, text, ha="center", va="center", fontsize=10)


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float = 0.0) -> None:
    """An arrow, straight or bent."""
    axis.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=12,
            color=colour,
            connectionstyle=f"arc3,rad={bend}",
            shrinkA=0,
            shrinkB=0,
        )
    )


if __name__ == "__main__":
    with plt.rc_context({**STYLE, "svg.hashsalt": "neurolm"}):
        main()

"""Figures of a checkpoint: where its codes lie, and whether its probabilities can be believed.

As in `figures`, from plain arrays, in one style.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from .figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, drawing, matrix, panels
from .metrics import CALIBRATION_BINS


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# name, from and below which frequency (Hz), colour, marker
BANDS = (
    ("Below 4 Hz", 0.0, 4.0, BLUE, "o"),
    ("4 to 8 Hz", 4.0, 8.0, SKY, "^"),
    ("8 to 13 Hz", 8.0, 13.0, ORANGE, "s"),
    ("13 to 30 Hz", 13.0, 30.0, VERMILION, "D"),
    ("30 Hz and above", 30.0, np.inf, PURPLE, "P"),
)


@drawing
def plot_code_map(
    places: ArrayLike, counts: ArrayLike, hertz: ArrayLike | None = None, explained: tuple[float, float] | None = None
) -> "Figure":
    """Draw the codes in two dimensions: sized by how often they are used, and marked by what they stand for.

    Args:
        places: (codes, 2)
        counts: (codes,) number of patches given each code; unused codes are crosses.
        hertz: (codes,) frequency that a code stands for; None where nothing says so.
        explained: share of the variance along each axis.
    """
    where, usage = matrix(places, "places"), np.asarray(counts, dtype=float)
    if where.shape != (len(usage), 2):
        raise ValueError(f"{len(usage)} counts do not fit places of shape {where.shape}")
    figure, (axis,) = panels(1, height=4.6, top=0.5)
    used = usage > 0
    if not used.all():
        name = f"Unused ({(~used).sum():,})"
        axis.plot(where[~used, 0], where[~used, 1], "x", color="#8a8a8a", markersize=4, linewidth=0, label=name)
    sizes = 8 + 90 * np.sqrt(usage / max(usage.max(), 1))
    if hertz is None:
        axis.scatter(
            where[used, 0], where[used, 1], s=sizes[used], color=BLUE, alpha=0.6, edgecolors=BLACK, linewidths=0.3,
            label=f"Used ({used.sum():,})",
        )  # fmt: skip
    else:
        frequency = np.asarray(hertz, dtype=float)
        for name, low, high, colour, marker in BANDS:
            inside = used & (frequency >= low) & (frequency < high)
            if inside.any():
                axis.scatter(
                    where[inside, 0], where[inside, 1], s=sizes[inside], color=colour, marker=marker, alpha=0.7,
                    edgecolors=BLACK, linewidths=0.3, label=f"{name} ({inside.sum():,})",
                )  # fmt: skip
    shares = ("", "") if explained is None else tuple(f" ({share:.0%} of the variance)" for share in explained)
    axis.set(xlabel=f"First principal component{shares[0]}", ylabel=f"Second{shares[1]}")
    axis.set_aspect("equal", adjustable="datalim")
    legend = figure.legend(*axis.get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize=9)
    for handle in legend.legend_handles:
        if handle is not None and hasattr(handle, "set_sizes"):
            handle.set_sizes([36])
    return figure


@drawing
def plot_reliability(confidence: ArrayLike, is_right: ArrayLike) -> "Figure":
    """Draw how often answers are right against how sure the model is of them.

    Args:
        confidence: (windows,) probability of the likeliest answer.
        is_right: (windows,) whether it is the true one.
    """
    given, right = np.asarray(confidence, dtype=float), np.asarray(is_right, dtype=bool)
    if given.shape != right.shape or given.ndim != 1 or not given.size:
        raise ValueError(f"confidence {given.shape} and is_right {right.shape} must be (windows,)")
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins = np.minimum((given * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    filled = counts > 0
    mean, share = (
        np.bincount(bins, weights=values, minlength=CALIBRATION_BINS)[filled] / counts[filled]
        for values in (given, right.astype(float))
    )
    figure, (axis, below) = panels(2, height=2.2)
    figure.set_figheight(4.4)
    axis.plot([0, 1], [0, 1], ":", color=BLACK, linewidth=1.2, label="As sure as right")
    axis.plot(mean, share, "o-", color=BLUE, linewidth=1.6, label="This model")
    axis.set(ylabel="Share that is right", xlim=(0, 1), ylim=(-0.03, 1.03))
    axis.legend(loc="upper left")
    below.bar(edges[:-1], counts, width=1 / CALIBRATION_BINS, align="edge", color=GREEN, edgecolor="white")
    below.set(ylabel="Windows", xlim=(0, 1), xlabel="Probability of the likeliest answer")
    return figure

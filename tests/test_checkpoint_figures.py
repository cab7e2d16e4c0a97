"""Figures of a checkpoint: what they show of the arrays that they are given."""

import numpy as np
import pytest

from neurolm_hf.checkpoint_figures import plot_code_map, plot_reliability


PLACES = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])


def test_codes_are_sized_by_use_and_marked_by_frequency():
    figure = plot_code_map(PLACES, [100, 25, 0, 25], [2.0, 10.0, 10.0, 10.0], (0.5, 0.25))
    (axis,) = figure.axes
    low, alpha = axis.collections
    assert (low.get_label(), alpha.get_label()) == ("Below 4 Hz (1)", "8 to 13 Hz (2)")
    np.testing.assert_array_equal(alpha.get_offsets(), PLACES[[1, 3]])
    # areas follow the root of the use: 25 of 100 is half of the way
    assert low.get_sizes()[0] - 8 == pytest.approx(2 * (alpha.get_sizes()[0] - 8))
    assert (low.get_facecolor() != alpha.get_facecolor()).any()
    assert low.get_paths()[0].vertices.shape != alpha.get_paths()[0].vertices.shape  # a shape of its own
    assert axis.lines[0].get_label() == "Unused (1)"
    assert axis.get_xlabel() == "First principal component (50% of the variance)"


def test_codes_of_unknown_frequency_are_of_one_kind():
    (axis,) = plot_code_map(PLACES, [1, 2, 3, 4]).axes
    assert [drawn.get_label() for drawn in axis.collections] == ["Used (4)"]
    assert not axis.lines
    with pytest.raises(ValueError, match="3 counts do not fit"):
        plot_code_map(PLACES, [1, 2, 3])


def test_reliability_is_the_share_right_by_confidence():
    confidence = [0.55, 0.55, 0.95, 0.95, 0.91, 1.0]
    axis, below = plot_reliability(confidence, [True, False, True, True, True, False]).axes
    line = next(line for line in axis.lines if line.get_label() == "This model")
    # fifteen bins, as of the calibration error
    np.testing.assert_allclose(line.get_xdata(), [0.55, 0.91, (0.95 + 0.95 + 1) / 3])
    np.testing.assert_allclose(line.get_ydata(), [0.5, 1, 2 / 3])
    assert [patch.get_height() for patch in below.patches] == [*[0] * 8, 2, *[0] * 4, 1, 3]
    with pytest.raises(ValueError, match="must be"):
        plot_reliability([0.5], [True, False])

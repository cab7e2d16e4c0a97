"""Figures of a recording: what they show of the arrays that they are given."""

import numpy as np
import pytest

from neurolm_hf import recording_figures as figures


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def texts(axis):
    return [text.get_text() for text in axis.texts]


def labels(axis):
    return [text.get_text() for text in axis.get_yticklabels()]


def test_two_answers_are_a_line_of_windows():
    figure = figures.plot_answers([0, 4], [4, 8], [[0.9, 0.1], [0.2, 0.8]], ["No", "Yes"], 10)
    (axis,) = figure.axes
    np.testing.assert_allclose(axis.collections[0].get_segments(), [[[0, 0.1], [4, 0.1]], [[4, 0.8], [8, 0.8]]])
    assert (axis.get_xlim(), axis.get_ylabel(), axis.get_xlabel()) == ((0, 10), "P(Yes)", "Time (s)")


def test_several_answers_are_cells_with_the_likeliest_marked():
    figure = figures.plot_answers([0, 3600], [3600, 7200], [[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]], list("ABC"), 10800)
    axis = figure.axes[0]
    assert axis.get_xlabel() == "Time (h)"
    np.testing.assert_allclose(axis.collections[-1].get_segments(), [[[0, 2], [1, 2]], [[1, 0], [2, 0]]])
    np.testing.assert_allclose(axis.collections[1].get_array(), [0.2, 0.3])
    assert labels(axis) == ["A", "B", "C"]
    with pytest.raises(ValueError, match="do not fit 2 windows and 2 answers"):
        figures.plot_answers([0, 1], [1, 2], [[1.0, 0, 0], [1.0, 0, 0]], ["A", "B"], 2)


def test_traces_lie_under_their_answers(rng):
    signal = rng.normal(0, 10, (3, 800)) + 500
    windows = [(8.0, 10.0, "Yes 0.80"), (10.0, 12.0, "No 0.60")]
    (axis,) = figures.plot_traces(signal, ["C3", "$C$4", "O2"], 200, 8.0, windows, [(9.0, "T1 $x$")]).axes
    assert texts(axis) == ["Yes 0.80", "No 0.60", r" T1 \$x\$"]
    assert [text.get_position()[0] for text in axis.texts] == [9, 11, 9]
    assert labels(axis) == ["C3", r"\$C\$4", "O2"]
    assert (axis.get_xlim(), axis.get_title(loc="left")[:9]) == ((8, 12), "Lines are")
    spacing = float(axis.get_title(loc="left").split()[2])
    assert spacing == pytest.approx(80, rel=0.1)  # eight amplitudes
    np.testing.assert_allclose(axis.lines[1].get_ydata(), (signal[1] - np.median(signal[1])) / spacing - 1, atol=0.02)
    with pytest.raises(ValueError, match="2 channel names for 3 rows"):
        figures.plot_traces(signal, ["C3", "C4"], 200, 0, [])


def test_many_channels_are_thinned_out_and_flat_ones_drawn(rng):
    names = [f"C{row}" for row in range(64)]
    (axis,) = figures.plot_traces(np.zeros((64, 400)), names, 200, 0, []).axes
    assert len(axis.lines) == figures.ROWS_AT_MOST
    assert axis.get_title(loc="left").endswith("32 of 64 channels")
    assert labels(axis)[0] == "C0"
    assert labels(axis)[-1] == "C63"


def test_filtering_shows_medians_before_and_after():
    hertz = np.arange(0, 100.5, 0.5)
    before, after = np.full((3, hertz.size), 4.0), np.full((3, hertz.size), 2.0)
    (axis,) = figures.plot_filtering(hertz, after, before, 50.0).axes
    drawn = {line.get_label(): line for line in axis.get_lines()}
    assert set(drawn) == {"Before", "After", "Mains, 50 Hz"}
    np.testing.assert_allclose(drawn["Before"].get_ydata(), 4)
    np.testing.assert_allclose(drawn["After"].get_ydata(), 2)
    assert drawn["Before"].get_linestyle() != drawn["After"].get_linestyle()
    assert [line.get_label() for line in figures.plot_filtering(hertz, after).axes[0].get_lines()] == ["After"]


def test_token_map_names_seconds_of_the_recording():
    (axis, _) = figures.plot_token_map(np.eye(2, 5), ["C3", "C4"], [0, 1, 2, 60, 61]).axes
    np.testing.assert_array_equal(axis.images[0].get_array(), np.eye(2, 5))
    assert [text.get_text() for text in axis.get_xticklabels()] == ["0", "1", "2", "60", "61"]


def test_topography_has_a_map_bars_and_a_list_of_what_has_no_place():
    values = {"FP1": 0.5, "FZ": -1.0, "CZ": 0.2, "T3": 0.1, "T7": 0.3, "FP1-F7": 0.4, "CFC1": 0.0, "O1": float("nan")}
    figure, missing = figures.plot_topography(values)
    assert missing == ["T7", "FP1-F7", "CFC1", "O1"]  # T3 and T7 are one place
    head, bars = figure.axes
    assert texts(head) == ["FP1", "FZ", "CZ", "T3"]
    assert labels(bars) == ["FP1", "FP1-F7", "T7", "CZ", "T3", "CFC1", "FZ"]
    np.testing.assert_allclose([patch.get_width() for patch in bars.patches], [0.5, 0.4, 0.3, 0.2, 0.1, 0, -1])
    # the map is scaled alike on both sides of zero
    assert head.images[0].get_clim() == (-1, 1)
    places = {text.get_text(): text.get_position() for text in head.texts}
    assert places["FP1"][1] > places["FZ"][1] > places["CZ"][1]
    assert places["T3"][0] < places["FP1"][0] < places["FZ"][0] + 1e-3


def test_topography_of_few_channels_is_bars_alone():
    figure, missing = figures.plot_topography({"C3": 0.1, "C4": -0.1, "O2": 0.0})
    assert len(figure.axes) == 1
    assert missing == ["C3", "C4", "O2"]
    many = {name: float(place) for place, name in enumerate(f"X{number}" for number in range(40))}
    (axis,) = figures.plot_topography(many)[0].axes
    assert axis.get_title(loc="left").endswith("the 24 largest of 40")
    assert labels(axis)[0] == "X39"
    with pytest.raises(ValueError, match="every channel's is NaN"):
        figures.plot_topography({"C3": float("nan")})


def test_channel_seconds_are_signed_cells_under_the_seconds():
    values = np.array([[0.0, 2.0], [-1.5, np.nan], [0.1, 0.0]])
    top, cells, _ = figures.plot_channel_seconds(values, ["C3", "C4", "O2"], [0.5, -0.5], 8).axes
    assert [patch.get_height() for patch in top.patches] == [0.5, -0.5]
    np.testing.assert_array_equal(np.ma.getdata(cells.images[0].get_array()), values)
    assert cells.images[0].get_clim() == (-2, 2)
    signs = {text.get_text(): text.get_position() for text in cells.texts}
    assert signs == {"+": (9.5, 0), "−": (8.5, 1)}
    assert cells.get_xlim() == (8, 10)
    with pytest.raises(ValueError, match="3 values of seconds for 2 seconds"):
        figures.plot_channel_seconds(values, ["C3", "C4", "O2"], [1, 2, 3], 0)


def test_all_of_them_can_be_saved(tmp_path, rng):
    """Names from files are no mathematics: an odd one would fail only when the figure is drawn."""
    odd = r"$\frac$ {x"
    drawn = [
        figures.plot_answers([0], [1], [[0.3, 0.7]], [odd, odd + "2"], 1),
        figures.plot_traces(rng.normal(size=(1, 200)), [odd], 200, 0, [(0, 1, "Yes")], [(0.5, odd)]),
        figures.plot_token_map([[1.0]], [odd], [0]),
        figures.plot_topography({odd: 1.0})[0],
        figures.plot_channel_seconds([[1.0]], [odd], [1.0], 0),
    ]
    for number, figure in enumerate(drawn):
        figure.savefig(tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 3000

"""Flat and clipped channels and values that are no numbers, found in blocks; amplitudes, and advice on units."""

import numpy as np
import pytest
from recording_files import make_eeg

from neurolm_hf.checks_neurolm import InputChecks, robust_amplitude, unit_advice


@pytest.mark.parametrize("length", [7, 1000, 9999, 10_000])
def test_flat_and_clipped_channels_are_found_in_one_pass(length):
    """In blocks of any length as in one piece."""
    eeg = make_eeg(7, seconds=50, seed=1)
    eeg[1, 900:] = 3.0  # 91 %
    eeg[2, 3000:] = 3.0  # 70 %
    eeg[3] = np.clip(eeg[3], -30, 1000)  # stays for 0.4 %
    eeg[4] = np.clip(eeg[4], -1000, 20)  # for 2.5 %
    eeg[5, ::2] = 7.0  # half of the time, never twice in a row
    eeg[6, 9000:] = 0.0  # dead for a while
    checks = InputChecks(7)
    for start in range(0, eeg.shape[1], length):
        checks.add(eeg[:, start : start + length])
    assert not checks.n_bad.any()
    assert checks.flat.tolist() == [False, True, False, False, False, False, False]
    stays = [np.mean((row[1:] == row[:-1]) & np.isin(row[1:], (row.min(), row.max()))) for row in eeg]
    assert checks.clipped.tolist() == [share >= 0.01 and row != 1 for row, share in enumerate(stays)]
    assert checks.clipped[3:5].tolist() == [False, True]


def test_values_that_are_no_numbers_are_counted_across_blocks():
    eeg = make_eeg(3)
    eeg[1, [130, 700]] = np.nan
    eeg[2, 5] = np.inf
    checks = InputChecks(3)
    for start in range(0, 800, 100):
        checks.add(eeg[:, start : start + 100])
    assert (checks.n_bad.tolist(), checks.first_bad.tolist()) == ([0, 2, 1], [0, 130, 5])


def test_amplitude_ignores_drift_and_dead_seconds():
    eeg = make_eeg(2, seconds=60)
    eeg[0] += np.linspace(-500, 500, eeg.shape[1])
    eeg[1, : 30 * 200] = 0.0
    np.testing.assert_allclose(robust_amplitude(eeg, 200), [20, 20], rtol=0.05)


@pytest.mark.parametrize(("amplitude", "said"), [(2e-5, "'V'"), (0.02, "'mV'"), (20, "'uV'"), (20e3, "'nV'")])
def test_advice_names_the_unit_in_which_numbers_are_eeg(amplitude, said):
    assert f"unit={said}" in unit_advice(amplitude)


def test_no_advice_on_numbers_that_fit_no_unit():
    assert "fit no unit" in unit_advice(1e12)

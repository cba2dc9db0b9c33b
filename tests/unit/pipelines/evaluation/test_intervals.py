"""Intervals are over sources, paired, and of the width that theory gives."""

import numpy as np
import pytest

from pipelines.evaluation.intervals import Figure, difference_of, figure, mean_of, median_of


def test_an_interval_of_independent_clips_has_the_width_of_theory():
    values = (np.random.default_rng(0).random(400) < 0.3).astype(float)
    found = figure(mean_of(values), np.arange(400))
    error = np.sqrt(values.mean() * (1 - values.mean()) / 400)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert found.low < found.value < found.high


def test_copies_of_a_source_do_not_narrow_the_interval():
    values = (np.random.default_rng(0).random(100) < 0.5).astype(float)
    alone = figure(mean_of(values), np.arange(100))
    copied = figure(mean_of(np.repeat(values, 9)), np.repeat(np.arange(100), 9))
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    as_clips = figure(mean_of(np.repeat(values, 9)), np.arange(900))
    assert as_clips.high - as_clips.low < 0.5 * (copied.high - copied.low)


def test_pairing_narrows_the_interval_of_a_difference():
    rng = np.random.default_rng(0)
    first = (rng.random(300) < 0.5).astype(float)
    second = first.copy()
    second[:9] = 1.0 - second[:9]
    paired = figure(difference_of(mean_of(first), mean_of(second)), np.arange(300))
    assert paired.high - paired.low < 0.06
    assert figure(difference_of(mean_of(first), mean_of(first)), np.arange(300)) == Figure(0, 0, 0)
    always = figure(difference_of(mean_of(np.ones(50)), mean_of(np.zeros(50))), np.arange(50))
    assert always.is_above_zero
    assert not always.is_below_zero


def test_one_source_has_no_interval_and_figures_repeat():
    values = np.array([1.0, 0.0, 1.0])
    assert figure(mean_of(values), np.zeros(3)) == Figure(2 / 3)
    assert not figure(mean_of(values), np.zeros(3)).is_above_zero
    assert figure(mean_of(values), np.arange(3)) == figure(mean_of(values), np.arange(3))


def test_the_median_is_weighted():
    values = np.array([5.0, 1.0, 9.0])
    weights = np.array([[1, 1, 1], [0, 1, 0], [1, 0, 3]])
    assert median_of(values)(weights).tolist() == [5.0, 1.0, 9.0]

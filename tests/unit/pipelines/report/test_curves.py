"""Curves are drawn whatever their values are."""

import numpy as np
import pytest

from pipelines.report.run_page import render
from tests.helpers.pages import Page, bare, section


@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [np.nan],
        [np.nan, np.nan, np.nan],
        [1.0, np.nan, 0.5],
        [np.inf, 1.0, -np.inf],
        [1.797e308, 1.0],
        [0.0, 0.0],
        [1e-30, 1e30],
    ],
    ids=str,
)
def test_odd_curves_are_drawn(values):
    curve = (np.arange(len(values)), np.array(values))
    page = render(bare(metrics={"loss/total": curve, "health/video/effective_rank": curve}))
    lost = sum(not abs(value) < 1e300 for value in values)
    Page(page)
    assert ("not finite" in section(page, "losses")) == (lost > 0)
    if lost == len(values):
        assert "no number" in section(page, "losses")


def test_a_curve_without_points_is_left_out():
    page = render(bare(metrics={"loss/total": (np.array([]), np.array([]))}))
    assert 'class="none' in section(page, "losses")


def test_a_long_curve_stays_small_and_keeps_its_spike():
    values = np.ones(100_000)
    values[61_234] = 50.0
    page = render(bare(metrics={"time/step_seconds": (np.arange(100_000), values)}))
    assert len(page) < 200_000
    assert ">50<" in page.replace(" ", "") or ">45<" in page.replace(" ", "")

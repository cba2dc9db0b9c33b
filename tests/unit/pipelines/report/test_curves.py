"""Curves are drawn whatever their values are."""

import numpy as np
import pytest

from pipelines.report.curves import make_cards
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


@pytest.mark.parametrize("seed", range(5))
def test_the_parts_of_a_step_that_the_report_shows_sum_to_all_of_it(seed):
    shares = np.random.default_rng(seed).dirichlet([0.3, 0.3, 3.0, 0.1, 1.0])
    names = [f"time/share_{part}" for part in ("wait", "views", "step", "stall", "other")]
    metrics = {
        name: (np.array([0, 10]), np.array([1.0, share]))
        for name, share in zip(names, shares, strict=True)
    }
    cards = [card for card in make_cards(metrics).speed if "share" in card.title]
    assert len(cards) == 5
    assert sum(float(card.values[0][2]) for card in cards) == pytest.approx(1.0, abs=0.02)

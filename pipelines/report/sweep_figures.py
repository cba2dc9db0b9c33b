"""Drawings of a sweep's page: scores over time, by setting, and audio against video."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from pipelines.report.figures import COLORS, canvas, to_markup

Look = Literal["best", "completed", "stopped", "collapsed"]
_LABEL_LETTERS = 36
"""Letters that fit on one line below a small drawing."""
MARKERS: dict[Look, dict[str, Any]] = {
    "best": {"color": COLORS["class-0"], "marker": "*", "s": 130, "zorder": 4},
    "completed": {"color": COLORS["muted"], "marker": "o", "s": 30, "zorder": 3},
    "stopped": {"facecolors": "none", "edgecolors": COLORS["muted"], "marker": "o", "s": 30},
    "collapsed": {"color": COLORS["bad"], "marker": "x", "s": 36},
}
LINES: dict[Look, dict[str, Any]] = {
    "best": {"color": COLORS["class-0"], "linewidth": 2.6, "zorder": 4},
    "completed": {"color": COLORS["muted"], "linewidth": 1.2, "alpha": 0.75},
    "stopped": {"color": COLORS["muted"], "linewidth": 1.0, "alpha": 0.45, "linestyle": ":"},
    "collapsed": {"color": COLORS["bad"], "linewidth": 1.2, "linestyle": ":"},
}


@dataclass(frozen=True)
class TrialLine:
    """The scores of a trial at its rungs."""

    epochs: Sequence[float]
    scores: Sequence[float]
    look: Look


@dataclass(frozen=True)
class TrialPoint:
    """A trial as a point; `x` is a number or a category."""

    x: Any
    y: float
    look: Look


def draw_trials(lines: Sequence[TrialLine], *, alt: str, width: int, height: int) -> Markup:
    """Draws the scores of each trial over its epochs; a stopped trial ends with a marker."""
    figure, axes = canvas(width, height, left=48, bottom=38, top=8, right=12)
    for line in lines:
        axes.plot(line.epochs, line.scores, **LINES[line.look])
        if line.look != "completed":
            axes.scatter(line.epochs[-1:], line.scores[-1:], **MARKERS[line.look])
    _plain_scale(axes, 6)
    _label(axes, "epochs")
    _percent_scale(axes)
    return to_markup(figure, alt)


def draw_setting(
    points: Sequence[TrialPoint], *, alt: str, is_log: bool = False, is_whole: bool = False
) -> Markup:
    """Draws the score of each trial over one setting."""
    categories = sorted({p.x for p in points if isinstance(p.x, str)}, key=str)
    labels = _category_labels(categories)
    bottom = 38 if any("\n" in label for label in labels) else 26
    figure, axes = canvas(320, 190, left=48, bottom=bottom, top=8, right=12)
    positions = {name: position for position, name in enumerate(categories)}
    # Points of a category are shifted sideways so that they do not hide each other.
    aside = np.random.default_rng(0).uniform(-0.14, 0.14, len(points))
    for point, shift in zip(points, aside, strict=True):
        x = positions[point.x] + shift if isinstance(point.x, str) else point.x
        axes.scatter([x], [point.y], **MARKERS[point.look])
    if categories:
        axes.set_xticks(range(len(categories)), labels)
        axes.set_xlim(-0.5, len(categories) - 0.5)
    elif is_log:
        _log_scale(axes)
    else:
        _plain_scale(axes, 4, is_whole=is_whole)
    _percent_scale(axes)
    return to_markup(figure, alt)


def draw_front(points: Sequence[TrialPoint], front: Sequence[TrialPoint], *, alt: str) -> Markup:
    """Draws audio over video scores and their Pareto front."""
    figure, axes = canvas(460, 340, left=52, bottom=40, top=10, right=14)
    for point in points:
        axes.scatter([point.x], [point.y], **MARKERS[point.look])
    axes.step(
        [point.x for point in front],
        [point.y for point in front],
        where="pre",
        color=COLORS["class-0"],
        linewidth=1.4,
        linestyle="--",
    )
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    axes.margins(0.08)
    _label(axes, "video")
    _percent_scale(axes)
    axes.set_ylabel("audio", color=COLORS["muted"], fontsize=11, labelpad=2)
    return to_markup(figure, alt)


def _log_scale(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high / low < 20:  # the axis would show too few powers of ten
        axes.set_xticks(np.geomspace(low * 1.1, high / 1.1, 3))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    axes.minorticks_off()


def _plain_scale(axes: Axes, most: int, *, is_whole: bool = False) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10], integer=is_whole))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def _percent_scale(axes: Axes) -> None:
    axes.grid(axis="y", color=COLORS["line"], linewidth=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))


def _percent(value: float, _: int | None) -> str:
    return f"{100 * value:.0f} %"


def _label(axes: Axes, text: str) -> None:
    axes.set_xlabel(text, color=COLORS["muted"], fontsize=11, labelpad=2)


def _category_labels(categories: Sequence[str]) -> list[str]:
    """Labels below an axis; every second one a line lower if one line is too short."""
    names = [_short(name) for name in categories]
    if sum(map(len, names)) <= _LABEL_LETTERS:
        return names
    return ["\n" * (position % 2) + name for position, name in enumerate(names)]


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "\u2026"

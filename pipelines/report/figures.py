"""Drawings of the pages: curves and maps as inline SVG.

Matplotlib draws with placeholder colors, which `to_markup` replaces by CSS variables, so that one
drawing serves the light and the dark page:

    matplotlib   stroke: #040401        placeholder of "video"
    to_markup    stroke: var(--video)   the page's style says which blue that is
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from pipelines.media.windows import evenly_spaced
from pipelines.report.page import visible

Array = NDArray[Any]

_MAX_CURVE_POINTS = 400
"""A longer curve is drawn by the lowest and highest value of each interval: spikes stay."""
_SMOOTHED_FROM = 40
"""A curve of at least so many values also gets its running mean."""
MARKERS = "osD^vPX*<>p"
"""Their number is coprime to `NUM_CLASS_COLORS`, so that no pair of both repeats."""
NUM_CLASS_COLORS = 8

_INK, _GRID, _BAD = "#010101", "#020202", "#030303"
_STAND_INS = {_INK: "--muted", _GRID: "--line", _BAD: "--bad"}
COLORS = {"video": "#040401", "audio": "#040402", "plain": "#040403"} | {
    f"class-{i}": f"#0505{i:02x}" for i in range(NUM_CLASS_COLORS)
}
_STAND_INS |= {color: f"--{name}" for name, color in COLORS.items()}
COLORS |= {"muted": _INK, "line": _GRID, "bad": _BAD}
"""Placeholders of the page's colors by name."""


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    steps: Array
    values: Array
    color: str = "plain"
    """`video`, `audio` or `plain`."""


@dataclass(frozen=True)
class MapGroup:
    """The points of one class, or of all classes without a color of their own."""

    points: Array
    color: str
    marker: str


def draw_lines(
    series: Sequence[Series], *, alt: str, width: int = 320, height: int = 170
) -> Markup:
    """Draws values over steps; values that are not finite become red ticks on the axis."""
    figure, axes = canvas(width, height, left=48, bottom=24, top=8, right=10)
    for i, line in enumerate(series):
        # Dashed over an equal curve, so that both are visible.
        hides = any(np.array_equal(line.values, other.values) for other in series[:i])
        _draw_line(axes, line, "--" if hides else "-")
        lost = line.steps[~np.isfinite(line.values)]
        if len(lost):
            _mark_lost(axes, lost)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    steps = np.unique(np.concatenate([line.steps for line in series]))
    if len(steps) == 1:
        axes.set_xticks(steps)
    if not any(np.isfinite(line.values).any() for line in series):
        axes.set_yticks([])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_number(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick_text(axes)))
    return to_markup(figure, alt)


def draw_map(groups: Sequence[MapGroup], *, alt: str) -> Markup:
    """Draws points of a plane, without numbers on the axes: they have no unit."""
    figure, axes = canvas(460, 400, left=6, bottom=6, top=6, right=6)
    for group in groups:
        axes.scatter(
            group.points[:, 0],
            group.points[:, 1],
            s=22,
            color=COLORS[group.color],
            marker=group.marker,
            alpha=0.8,
            linewidths=0,
        )
    axes.margins(0.04)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    return to_markup(figure, alt)


def draw_marker(color: str, marker: str) -> Markup:
    """Draws the marker of a class for a legend."""
    figure, axes = canvas(14, 14, left=0, bottom=0, top=0, right=0)
    axes.scatter([0], [0], s=90, color=COLORS[color], marker=marker, linewidths=0)
    axes.axis("off")
    return to_markup(figure, "")


def canvas(
    width: int, height: int, *, left: int, bottom: int, top: int, right: int
) -> tuple[Figure, Axes]:
    """Creates an empty drawing in the page's style; sizes and margins in pixels."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    axes = figure.add_axes(box, facecolor="none")
    axes.tick_params(colors=_INK, labelsize=11, length=0, pad=5)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_GRID)
    return figure, axes


def to_markup(figure: Figure, alt: str) -> Markup:
    """Converts a drawing to inline SVG in the colors of the page."""
    written, alt = io.StringIO(), visible(alt)
    # All figures share one page, so their ids are salted with the text of each.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": alt or "legend"}):
        FigureCanvasSVG(figure).print_svg(  # type: ignore[no-untyped-call]  # matplotlib has none
            written, metadata={"Date": None}
        )
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"#0[1-5]0[1-5][0-9a-f]{2}", lambda hit: _css_color(hit[0]), svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    name = f'role="img" aria-label="{escape(alt)}"' if alt else 'aria-hidden="true"'
    head = f"<svg {box[0] if box else ''} {name}>"
    return Markup(head + svg[svg.index(">") + 1 :])


def _short_number(value: float) -> str:
    """Formats a number of steps in few characters.

    >>> [_short_number(value) for value in (250, 12_000, 1_500_000)]
    ['250', '12k', '1.5M']
    """
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def _thin(steps: Array, values: Array, most: int = _MAX_CURVE_POINTS) -> tuple[Array, Array]:
    """Thins a long curve to the lowest and the highest value of each interval."""
    if len(values) <= most:
        return steps, values
    kept = [
        interval[extreme]
        for interval in np.array_split(np.arange(len(values)), most // 2)
        for extreme in sorted({int(values[interval].argmin()), int(values[interval].argmax())})
    ]
    return steps[kept], values[kept]


def _running_mean(values: Array) -> Array:
    """Smooths a curve: the mean over a window of a tenth of its length around each value.

    >>> _running_mean(np.array([0.0, 3.0, 0.0])).tolist()
    [1.5, 1.0, 1.5]
    """
    reach = max(1, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - reach, 0)
    last = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _draw_line(axes: Axes, line: Series, dashes: str) -> None:
    finite = np.isfinite(line.values)
    steps, values, color = line.steps[finite], line.values[finite], COLORS[line.color]
    if len(values) == 1:
        axes.plot(steps, values, "o", color=color, markersize=5)
        return
    if len(values) >= _SMOOTHED_FROM and _is_rough(values):
        axes.plot(*_thin(steps, _running_mean(values)), dashes, color=color, linewidth=1.8)
        look: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.35}
    else:
        look = {"linewidth": 1.6, "linestyle": dashes}
    # The line has a gap where values are missing.
    gaps = np.flatnonzero(np.diff(np.flatnonzero(finite)) > 1) + 1
    for part in np.split(np.arange(len(values)), gaps):
        marker = "o" if len(part) == 1 else ""
        axes.plot(
            *_thin(steps[part], values[part]), color=color, marker=marker, markersize=3, **look
        )


def _mark_lost(axes: Axes, steps: Array) -> None:
    """Draws ticks on the axis, at most as many as can be distinguished."""
    steps = steps[evenly_spaced(len(steps), _MAX_CURVE_POINTS // 2)]
    foot = np.full(len(steps), 0.03)
    across = axes.get_xaxis_transform()
    axes.plot(steps, foot, "|", color=_BAD, markersize=9, transform=across)


def _is_rough(values: Array) -> bool:
    changes = np.diff(values)
    turns = int((changes[1:] * changes[:-1] < 0).sum())
    return turns > len(values) / 10


def _tick_text(axes: Axes) -> Any:
    def text(value: float, _: int | None) -> str:
        ticks = axes.get_yticks()
        step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else abs(value) or 1.0
        largest = float(np.abs(ticks).max())
        if largest >= 1e5 or 0 < largest < 1e-3:
            return "0" if value == 0 else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        if round(step * 10**decimals, 6) % 1:  # a step such as 2.5 needs another digit
            decimals += 1
        return f"{value:.{decimals}f}"

    return text


def _css_color(stand_in: str) -> str:
    name = _STAND_INS.get(stand_in)
    return f"var({name})" if name else stand_in

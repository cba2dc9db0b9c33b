"""Bootstrap intervals over sources: how far a figure moves with the videos that happen to be there.

Clips of one source are alike, so whole sources are drawn, with replacement. All figures of the same
clips use the same draws, which pairs them: the interval of a difference is that of the differences.

    sources   a a b c c c        one draw of three sources: c a c
    weights   1 1 0 2 2 2        weight of a clip = times that its source was drawn
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_NUM_DRAWS = 1000
_DRAWS_AT_ONCE = 100
_COVERAGE = 0.95
_SEED = 20230
_CACHED_SOURCES = 20_000

Statistic = Callable[[Array], Array]
"""Computes a figure for each row of weights (draws, clips)."""


@dataclass(frozen=True)
class Figure:
    """A value and its 95 % interval; the bounds are None if there are too few sources."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def is_above_zero(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low is not None and self.low > 0

    @property
    def is_below_zero(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.high is not None and self.high < 0


def figure(statistic: Statistic, sources: Array) -> Figure:
    """Computes a statistic of all clips, and its interval over their sources."""
    value = float(statistic(np.ones((1, len(sources))))[0])
    names, number = np.unique(sources, return_inverse=True)
    if len(names) < 2:
        return Figure(value)
    draws = [statistic(weights[:, number]) for weights in _draws(len(names))]
    values = np.concatenate(draws)
    values = values[np.isfinite(values)]  # a draw may lack all clips of a class
    if not len(values):
        return Figure(value)
    low, high = np.quantile(values, [(1 - _COVERAGE) / 2, (1 + _COVERAGE) / 2])
    return Figure(value, float(low), float(high))


def mean_of(values: Array) -> Statistic:
    """The weighted mean of a number for each clip, such as 1 if it is right."""

    def statistic(weights: Array) -> Array:
        with np.errstate(invalid="ignore"):
            return weights @ values.astype(np.float64) / weights.sum(axis=1)

    return statistic


def median_of(values: Array) -> Statistic:
    """The weighted median of a number for each clip."""
    order = np.argsort(values, kind="stable")

    def statistic(weights: Array) -> Array:
        shares = np.cumsum(weights[:, order], axis=1)
        middle = (shares >= shares[:, -1:] / 2).argmax(axis=1)
        return values[order][middle].astype(np.float64)

    return statistic


def difference_of(first: Statistic, second: Statistic) -> Statistic:
    """The first figure minus the second, of the same draws."""
    return lambda weights: first(weights) - second(weights)


def _draws(num_sources: int) -> tuple[Array, ...]:
    """Times that each source is drawn, in parts of rows; the same every time."""
    if num_sources <= _CACHED_SOURCES:
        return _cached_draws(num_sources)
    return tuple(_generate(num_sources))


@lru_cache(maxsize=4)
def _cached_draws(num_sources: int) -> tuple[Array, ...]:
    return tuple(_generate(num_sources))


def _generate(num_sources: int) -> list[Array]:
    rng = np.random.default_rng(_SEED)
    parts = []
    for _ in range(0, _NUM_DRAWS, _DRAWS_AT_ONCE):
        drawn = rng.integers(0, num_sources, (_DRAWS_AT_ONCE, num_sources))
        drawn += num_sources * np.arange(_DRAWS_AT_ONCE)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=_DRAWS_AT_ONCE * num_sources)
        parts.append(counts.reshape(_DRAWS_AT_ONCE, num_sources).astype(np.uint8))
    return parts

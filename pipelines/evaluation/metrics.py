"""Figures of classifiers: top-1 and top-5, confusion, mAP, AUC and d'.

Each is a statistic of weights of the clips, so that `intervals` can draw sources. Figures of
several labels average over the classes that have clips with and without them, as AudioSet's do.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from pipelines.evaluation.intervals import Statistic

Array = NDArray[Any]


def top_k(scores: Array, truth: Array, k: int) -> Array:
    """Returns 1 for each clip whose class is among the `k` that score best, else 0.

    Of classes that score alike the first counts as better, as in `argmax`.
    """
    own = np.take_along_axis(scores, truth[:, None], axis=1)
    before = np.arange(scores.shape[1]) < truth[:, None]
    better = (scores > own) | ((scores == own) & before)
    return (better.sum(axis=1) < k).astype(np.float64)


def per_class(correct: Array, truth: Array, num_classes: int) -> tuple[float | None, ...]:
    """Returns the mean of each class; None for a class without a clip."""
    counts = np.bincount(truth, minlength=num_classes)
    sums = np.bincount(truth, correct, minlength=num_classes)
    return tuple(float(s / n) if n else None for s, n in zip(sums, counts, strict=True))


def confusion(predicted: Array, truth: Array, num_classes: int) -> tuple[tuple[int, ...], ...]:
    """Counts clips by their class (rows) and the class that was named (columns)."""
    cells = np.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return tuple(tuple(row) for row in cells.reshape(num_classes, num_classes).tolist())


def average_precision(scores: Array, targets: Array) -> Statistic:
    """mAP: the mean over classes of the average precision, with clips that score alike tied."""
    ranked = _ranked(scores, targets)

    def statistic(weights: Array) -> Array:
        return _mean_over_classes([_precision(weights, *one) for one in ranked])

    return statistic


def area_under_curve(scores: Array, targets: Array) -> Statistic:
    """The mean over classes of the area under the receiver operating curve."""
    ranked = _ranked(scores, targets)

    def statistic(weights: Array) -> Array:
        return _mean_over_classes([_area(weights, *one) for one in ranked])

    return statistic


def d_prime(scores: Array, targets: Array) -> Statistic:
    """sqrt(2) times the quantile of the standard normal distribution at the mean AUC."""
    area = area_under_curve(scores, targets)
    return lambda weights: np.sqrt(2.0) * ndtri(area(weights))


def _ranked(scores: Array, targets: Array) -> list[tuple[Array, Array, Array]]:
    """For each class that can be scored: the order of clips, their truth, and the ends of ties."""
    found = []
    for number in range(scores.shape[1]):
        truth = targets[:, number].astype(bool)
        if truth.all() or not truth.any():
            continue
        order = np.argsort(-scores[:, number], kind="stable")
        sorted_scores = scores[order, number]
        ends = np.flatnonzero(np.append(np.diff(sorted_scores) != 0, True))
        found.append((order, truth[order], ends))
    return found


def _counts(weights: Array, order: Array, truth: Array, ends: Array) -> tuple[Array, Array]:
    """Weights of the right and of the wrong clips down to the end of each tie."""
    sorted_weights = weights[:, order].astype(np.float64)
    right = np.cumsum(sorted_weights * truth, axis=1)[:, ends]
    wrong = np.cumsum(sorted_weights * ~truth, axis=1)[:, ends]
    return right, wrong


def _precision(weights: Array, order: Array, truth: Array, ends: Array) -> Array:
    right, wrong = _counts(weights, order, truth, ends)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(right + wrong > 0, right / (right + wrong), 0.0)
        recalled = np.diff(right, axis=1, prepend=0.0) / right[:, -1:]
    return (precision * recalled).sum(axis=1)


def _area(weights: Array, order: Array, truth: Array, ends: Array) -> Array:
    right, wrong = _counts(weights, order, truth, ends)
    # Of the right and wrong clips that score alike, half of the pairs are in order.
    before = np.concatenate([np.zeros((len(right), 1)), right[:, :-1]], axis=1)
    pairs = np.diff(wrong, axis=1, prepend=0.0) * (before + right) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return pairs.sum(axis=1) / (right[:, -1] * wrong[:, -1])


def _mean_over_classes(values: list[Array]) -> Array:
    """A draw of sources may lack a class, which is then left out of its mean."""
    if not values:
        return np.array([np.nan])
    stacked = np.stack(values)
    there = np.isfinite(stacked)
    with np.errstate(invalid="ignore"):
        return np.where(there, stacked, 0.0).sum(axis=0) / there.sum(axis=0)

"""A common space of pictures and sounds for retrieval: head outputs, or aligned frozen features.

Features of two encoders are not comparable as they are. Regularized canonical correlation analysis
finds linear maps of both, fitted to the pairs of the training clips, in which the two sides of a
clip are alike; labels are not used. With X, Y the standardized features of the training pairs:

    Cx = X'X / n + r tr(X'X / n) / D,   Cy alike
    Cx^-1/2  X'Y / n  Cy^-1/2 = U S V'        singular values: the correlations
    picture  x Cx^-1/2 U S,   sound  y Cy^-1/2 V S

Projection heads are trained to agree, but of the synthetic clips' ten kinds in three directions
alone; the features tell more apart (`tests/benchmarks/results/retrieval_cpu_202611.md`).

Source: Hotelling, Relations between two sets of variates, 1936; Vinod, Canonical ridge, 1976.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.config.evaluate import EvaluateSettings
from pipelines.evaluation.features import Features
from pipelines.evaluation.notes import LEAST_PAIRS
from xkd_core.encoders import MODALITIES

Array = NDArray[Any]
_RIDGE = 0.1
"""r above. On synthetic clips that no training saw, 0.03 to 0.3 score alike."""
_ROWS_AT_ONCE = 4096


def compared(features: Features, settings: EvaluateSettings) -> Literal["features", "heads"]:
    """Returns what retrieval compares.

    Head outputs also if there are too few training pairs, or no others to score the maps on.
    """
    has_both = features.has["video"] & features.has["audio"]
    enough = int((has_both & features.is_train).sum()) >= LEAST_PAIRS and features.is_test.any()
    return "features" if settings.retrieval_of == "features" and enough else "heads"


def common_space(features: Features, settings: EvaluateSettings) -> Mapping[str, Array]:
    """Returns rows of the clips in retrieval, by modality and network as `video/trained`."""
    if compared(features, settings) == "heads":
        return features.retrieval
    return aligned(features)


def aligned(features: Features) -> dict[str, Array]:
    """Fits the maps of each network, and applies them to the clips in retrieval.

    A network is left out that has one modality, or fewer than `LEAST_PAIRS` training clips with
    both.
    """
    found: dict[str, Array] = {}
    for network in sorted({path.split("/")[1] for path in features.matrices}):
        paths = [f"{modality}/{network}" for modality in MODALITIES]
        if not set(paths) <= features.matrices.keys():
            continue
        sides = [features.matrices[path] for path in paths]
        finite = np.all([np.isfinite(side).all(axis=1) for side in sides], axis=0)
        pairs = np.flatnonzero(features.is_train & finite)
        if len(pairs) < LEAST_PAIRS:
            continue
        maps = canonical_maps(sides[0][pairs], sides[1][pairs])
        for path, side, (mean, matrix) in zip(paths, sides, maps, strict=True):
            found[path] = (side[features.retrieval_clips] - mean) @ matrix
    return found


def canonical_maps(first: Array, second: Array) -> tuple[tuple[Array, Array], ...]:
    """Returns a mean and a matrix (D, K) for each side; K is the smaller width.

    Args:
        first: Features of pairs, (pairs, D).
        second: The other side of the same pairs, (pairs, D_other).
    """
    means = [side.mean(axis=0, dtype=np.float64) for side in (first, second)]
    scales = [np.maximum(side.std(axis=0, dtype=np.float64), 1e-12) for side in (first, second)]
    products = _products((first, second), means, scales)
    whitening = [_inverse_root(products[side, side]) for side in (0, 1)]
    left, correlations, right = np.linalg.svd(
        whitening[0] @ products[0, 1] @ whitening[1], full_matrices=False
    )
    directions = (left * correlations, right.T * correlations)
    return tuple(
        (means[side], (whitening[side] @ directions[side]) / scales[side][:, None])
        for side in (0, 1)
    )


def _products(
    sides: tuple[Array, Array], means: list[Array], scales: list[Array]
) -> dict[tuple[int, int], Array]:
    """Means of the products of standardized features, a part of the pairs at a time."""
    found: dict[tuple[int, int], Array] = {}
    for begin in range(0, len(sides[0]), _ROWS_AT_ONCE):
        parts = [
            (side[begin : begin + _ROWS_AT_ONCE] - mean) / scale
            for side, mean, scale in zip(sides, means, scales, strict=True)
        ]
        for key in ((0, 0), (1, 1), (0, 1)):
            product = parts[key[0]].T @ parts[key[1]] / len(sides[0])
            found[key] = found.get(key, 0.0) + product
    return found


def _inverse_root(covariance: Array) -> Array:
    """The inverse square root of a covariance whose eigenvalues are raised by the ridge."""
    values, vectors = np.linalg.eigh(covariance)
    raised = np.maximum(values, 0.0) + _RIDGE * np.trace(covariance) / len(covariance)
    root: Array = (vectors / np.sqrt(np.maximum(raised, 1e-12))) @ vectors.T
    return root

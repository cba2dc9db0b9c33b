"""Features as points of a plane: t-SNE from 30 clips on, PCA below.

The result names its method, since distances mean different things in the two. The same features and
seed give the same map.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import normalize

from pipelines.report.figures import MARKERS, NUM_CLASS_COLORS, MapGroup

_MIN_TSNE_CLIPS = 30
_MAX_CLIPS = 1000
MAX_CLASSES = 16
"""Classes with their own color and marker; rarer ones share a gray."""
_OTHERS = "plain"

Array = NDArray[Any]


@dataclass(frozen=True)
class EmbeddingMap:
    """The clips of one modality as points of a plane."""

    modality: Literal["video", "audio"]
    method: Literal["t-SNE", "PCA"]
    points: Array
    """(clips, 2)"""
    labels: tuple[str, ...]
    """One per point, or empty."""
    num_clips: int
    """All clips, of which at most 1,000 are points."""


def map_embeddings(
    modality: Literal["video", "audio"],
    features: Array,
    labels: Sequence[str] = (),
    *,
    seed: int = 0,
) -> EmbeddingMap | None:
    """Maps features (clips, D) to the plane; None if fewer than three clips have finite ones."""
    finite = np.flatnonzero(np.isfinite(features).all(axis=1))
    if len(finite) < 3:
        return None
    chosen = finite
    if len(finite) > _MAX_CLIPS:
        chosen = np.sort(np.random.default_rng(seed).choice(finite, _MAX_CLIPS, replace=False))
    directions = normalize(np.asarray(features, dtype=np.float64)[chosen])
    # For equal features t-SNE would divide by zero; PCA correctly shows one point.
    is_spread = bool(directions.std(axis=0).max() > 1e-9) and directions.shape[1] > 2
    method: Literal["t-SNE", "PCA"] = (
        "t-SNE" if is_spread and len(chosen) >= _MIN_TSNE_CLIPS else "PCA"
    )
    points = _tsne(directions, seed) if method == "t-SNE" else _pca(directions)
    kept_labels = tuple(labels[int(i)] for i in chosen) if len(labels) else ()
    return EmbeddingMap(modality, method, points, kept_labels, num_clips=len(features))


def group_points(
    plane: EmbeddingMap, signs: dict[str, tuple[str, str]]
) -> tuple[list[MapGroup], int]:
    """Splits the points by class; also counts those of classes without their own marker."""
    if not plane.labels:
        return [MapGroup(plane.points, plane.modality, "o")], 0
    labels = np.array(plane.labels, dtype=object)
    others = np.array([label not in signs for label in plane.labels])
    groups = [MapGroup(plane.points[others], _OTHERS, ".")] if others.any() else []
    for label, (color, marker) in signs.items():
        if (labels == label).any():
            groups.append(MapGroup(plane.points[labels == label], color, marker))
    return groups, int(others.sum())


def class_signs(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Gives each of the most frequent classes its own pair of color and marker."""
    counts = Counter(labels)
    frequent = sorted(counts, key=lambda label: (-counts[label], label))[:MAX_CLASSES]
    return {
        label: (f"class-{i % NUM_CLASS_COLORS}", MARKERS[i % len(MARKERS)])
        for i, label in enumerate(sorted(frequent))
    }


def _tsne(directions: Array, seed: int) -> Array:
    perplexity = min(30.0, (len(directions) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed, max_iter=750)
    return np.asarray(tsne.fit_transform(directions))


def _pca(directions: Array) -> Array:
    plane = np.zeros((len(directions), 2))
    components = min(2, *directions.shape)
    plane[:, :components] = PCA(components, svd_solver="full").fit_transform(directions)
    return plane

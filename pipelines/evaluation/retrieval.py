"""Cross-modal retrieval: does a clip's sound find its own picture, and its picture its sound?

Both are put into a common space (`alignment`), centered over the clips, and compared by cosine.
The rank of a clip is 1 plus the clips of the other modality that are more similar than its own; of
those that are as similar, half.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.intervals import Figure, difference_of, figure, mean_of, median_of
from pipelines.evaluation.scores import RetrievalScore

Array = NDArray[Any]
DIRECTIONS = ("audio_to_video", "video_to_audio")
RECALLS = (1, 5, 10)
_ROWS_AT_ONCE = 1024
_LEAST = 2


def directions(matrix: Array) -> Array:
    """Centers rows over the clips and scales them to length 1."""
    centered = matrix - matrix.mean(axis=0)
    return centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)


def ranks(asked: Array, found: Array) -> Array:
    """Returns the rank of each clip's own other side, from 1; ties count half.

    Args:
        asked: Directions of the side that asks, (clips, K).
        found: Directions of the side that is searched, in the same order.
    """
    parts = []
    for begin in range(0, len(asked), _ROWS_AT_ONCE):
        rows = asked[begin : begin + _ROWS_AT_ONCE]
        similarity = rows @ found.T
        own = similarity[np.arange(len(rows)), begin + np.arange(len(rows))][:, None]
        better = (similarity > own).sum(axis=1)
        alike = (similarity == own).sum(axis=1) - 1  # without itself
        parts.append(1.0 + better + alike / 2)
    return np.concatenate(parts) if parts else np.zeros(0)


def retrieval_ranks(heads: Mapping[str, Array]) -> dict[str, Array]:
    """Returns ranks by direction and network, as `audio_to_video/trained`.

    Args:
        heads: Rows of the same clips in a common space by modality and network, as
            `video/trained`.
    """
    networks = sorted({name.split("/")[1] for name in heads})
    result = {}
    for network in networks:
        if not {f"video/{network}", f"audio/{network}"} <= heads.keys():
            continue  # with one modality, or without a common space
        if len(heads[f"video/{network}"]) < _LEAST:
            continue
        video, audio = (directions(heads[f"{side}/{network}"]) for side in ("video", "audio"))
        if not (np.isfinite(video).all() and np.isfinite(audio).all()):
            continue
        result[f"audio_to_video/{network}"] = ranks(audio, video)
        result[f"video_to_audio/{network}"] = ranks(video, audio)
    return result


def retrieval_scores(
    found: Mapping[str, Array], sizes: Sequence[int]
) -> dict[str, dict[str, RetrievalScore]]:
    """Returns recalls and median ranks by direction and network, with intervals over sources."""
    scores: dict[str, dict[str, RetrievalScore]] = {}
    for path, rank in found.items():
        direction, network = path.split("/")
        scores.setdefault(direction, {})[network] = _score(rank, sizes)
    return scores


def retrieval_gains(found: Mapping[str, Array], other: str = "untrained") -> dict[str, Figure]:
    """Returns trained minus another, as `audio_to_video/recall@5`, with paired intervals."""
    gains = {}
    for direction in DIRECTIONS:
        both = [found.get(f"{direction}/{network}") for network in ("trained", other)]
        first, second = both
        if first is None or second is None:
            continue
        for k in RECALLS:
            change = difference_of(mean_of(recalled(first, k)), mean_of(recalled(second, k)))
            gains[f"{direction}/recall@{k}"] = figure(change, np.arange(len(first)))
    return gains


def _score(rank: Array, sizes: Sequence[int]) -> RetrievalScore:
    num_clips = len(rank)
    sources = np.arange(num_clips)
    figures, chance = {}, {}
    for k in RECALLS:
        figures[f"recall@{k}"] = figure(mean_of(recalled(rank, k)), sources)
        chance[f"recall@{k}"] = min(1.0, k / num_clips)
    figures["median_rank"] = figure(median_of(rank), sources)
    chance["median_rank"] = (num_clips + 1) / 2
    for size in sizes:
        if size >= num_clips:
            continue
        for k in RECALLS:
            values = recalled_among(rank, k, size)
            figures[f"recall@{k}/{size}"] = figure(mean_of(values), sources)
            chance[f"recall@{k}/{size}"] = min(1.0, k / size)
    return RetrievalScore(figures, chance, num_clips)


def recalled(rank: Array, k: int) -> Array:
    """Returns 1 for each clip that is among the first `k`, else 0."""
    return (rank <= k).astype(np.float64)


def recalled_among(rank: Array, k: int, size: int) -> Array:
    """Returns the chance of being among the first `k` of `size` clips drawn at random.

    Exact, without drawing: of the `rank - 1` better clips, at most `k - 1` may be among the
    `size - 1` others that are drawn of `len(rank) - 1`.
    """
    from scipy.stats import hypergeom  # a second of imports, which no worker needs

    better = np.ceil(rank).astype(int) - 1
    values: Array = hypergeom.cdf(k - 1, len(rank) - 1, better, size - 1)
    return values

"""Clips that leak: near-duplicates across a split, or duplicates within the training clips."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipelines.dataset.alike import Alike


@dataclass(frozen=True)
class NamedPair:
    """A pair of near-duplicates, for a table."""

    kind: str
    agreement: float
    is_leak: bool
    first_id: str
    first_source: str
    first_split: str
    second_id: str
    second_source: str
    second_split: str


def leaked_ids(alike: Sequence[Alike], held_out: Sequence[bool], ids: Sequence[str]) -> list[str]:
    """Returns training clips that duplicate a held-out clip, directly or through other clips.

    `near_duplicates` does not compare every two copies of a clip. A copy may therefore reach the
    held-out clip only through other copies.
    """
    leaders = _leaders(pair for pair in alike if pair.is_copy)
    spoilt = {leader for clip, leader in leaders.items() if held_out[clip]}
    return sorted(
        ids[clip] for clip, leader in leaders.items() if leader in spoilt and not held_out[clip]
    )


def duplicate_ids(
    alike: Sequence[Alike], held_out: Sequence[bool], ids: Sequence[str]
) -> list[str]:
    """Returns all but the first clip of each group of near-duplicates in training."""
    leaders = _leaders(
        pair
        for pair in alike
        if pair.is_copy and not held_out[pair.first] and not held_out[pair.second]
    )
    return sorted(ids[clip] for clip, leader in leaders.items() if clip != leader)


def _leaders(pairs: Iterable[Alike]) -> dict[int, int]:
    """Maps each clip that has a near-duplicate to the first clip of its group."""
    ends = np.array([(pair.first, pair.second) for pair in pairs], np.int64).reshape(-1, 2)
    clips, ends = np.unique(ends, return_inverse=True)
    if not len(clips):
        return {}
    first, second = ends.reshape(-1, 2).T
    links = coo_array((np.ones(len(first), bool), (first, second)), (len(clips), len(clips)))
    _, groups = connected_components(links, directed=False)
    _, leaders = np.unique(groups, return_index=True)  # lowest first: clips are sorted
    return dict(zip(clips.tolist(), clips[leaders[groups]].tolist(), strict=True))

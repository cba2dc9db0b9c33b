"""The order of training: which source is at which position of which global batch.

Epochs follow each other in one line of positions, which is cut into global batches. A batch is cut
further into lanes, and each lane takes its clips from row groups of its own. Worker r of W takes
the r-th part of each batch: whole lanes, where W divides their number. So a worker reads the row
groups of its own lanes alone, while the order knows nothing of workers. An epoch of 20 sources in
row groups g0 to g9 of two, with batches of 8 positions, four lanes and two workers:

    positions of          lane 0    lane 1  |  lane 2    lane 3
    batch 0                0  1      2  3   |   4  5      6  7
    batch 1                8  9     10 11   |  12 13     14 15
    batch 2               16 17     18 19   |  epoch 1 begins
    row groups, shuffled  g3 g8 g0  g5 g9 g1|  g7 g2     g4 g6
                          worker 0          |  worker 1

A lane gets as many sources of an epoch as it has positions there, so that an epoch ends at the same
position in all lanes. Where a cut between two lanes falls inside a row group, both read it. Within
a lane, the sources of `shuffle_window / num_lanes` row groups are shuffled together.

A small dataset has one lane: row groups are shuffled, and sources within windows of row groups.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xkd_core.views.parameters import clip_generator

MIN_LANE_GROUPS = 32
"""Row groups of a lane an epoch at least: the one that it shares costs 3 % then."""
MIN_LANE_CLIPS = 4
"""Clips of a lane in a batch at least. A worker with all lanes holds a row group of each, which is
four batches for row groups of 16 rows; with fewer clips it would hold more."""


@dataclass(frozen=True)
class Window:
    """Sources that are shuffled together and their positions, as far as they are a worker's."""

    epoch: int
    sources: NDArray[np.integer[Any]]
    positions: NDArray[np.int64]
    """From the first batch of the first epoch on."""


@dataclass(frozen=True)
class _Epoch:
    """The row groups of an epoch in a line."""

    groups: NDArray[np.int64]
    ends: NDArray[np.int64]
    """Sources up to the end of each."""
    lane_ends: NDArray[np.int64]
    """Sources up to the end of each lane's part of the line."""


def choose_num_lanes(batch_size: int, num_groups: int) -> int:
    """Gives the most lanes that divide a batch and leave enough for each of them.

    >>> choose_num_lanes(256, 30_000), choose_num_lanes(256, 640), choose_num_lanes(16, 20)
    (64, 16, 1)
    """
    most = min(batch_size // MIN_LANE_CLIPS, num_groups // MIN_LANE_GROUPS)
    return max((lanes for lanes in range(1, most + 1) if batch_size % lanes == 0), default=1)


class Order:
    """The order of sources that lie in row groups."""

    def __init__(
        self,
        group_of_source: NDArray[np.integer[Any]],
        first_rows: NDArray[np.integer[Any]],
        *,
        batch_size: int,
        shuffle_window: int,
        num_lanes: int | None,
        seed: int,
        dataset_id: str,
    ) -> None:
        """Sorts the sources by row group.

        Args:
            group_of_source: The row group that each source counts to.
            first_rows: The row of each source that gives the order within a row group.
            batch_size: Sources of a global batch.
            shuffle_window: Row groups whose sources are shuffled together, over all lanes.
            num_lanes: A divisor of `batch_size`, or None for what suits the dataset.
            seed: Of the order.
            dataset_id: Of the clips; other clips have another order.
        """
        groups = group_of_source
        self._sources: NDArray[np.int32] | None = None
        if (np.diff(first_rows) < 0).any():
            self._sources = np.argsort(first_rows).astype(np.int32)
            groups = groups[self._sources]
        self._num_sources = len(groups)
        begins = np.flatnonzero(np.diff(groups, prepend=-1))
        self._begins = np.append(begins, len(groups))
        self._batch_size = batch_size
        self.num_lanes = num_lanes or choose_num_lanes(batch_size, len(begins))
        self._lane_clips = batch_size // self.num_lanes
        self._window_groups = max(1, shuffle_window // self.num_lanes)
        self._seed, self._dataset_id = seed, dataset_id
        self._epoch = lru_cache(2)(self._shuffle_groups)

    @property
    def num_sources(self) -> int:
        """Positions of an epoch."""
        return self._num_sources

    def windows(self, first_batch: int, rank: int, world_size: int) -> Iterator[Window]:
        """Gives a worker's windows from a global batch on, in the order of need, without end."""
        share = self._batch_size // world_size
        first_lane = rank * share // self._lane_clips
        stop_lane = -(-(rank + 1) * share // self._lane_clips)
        lanes = [
            self._lane_windows(lane, first_batch, range(rank * share, (rank + 1) * share))
            for lane in range(first_lane, stop_lane)
        ]
        yield from heapq.merge(*lanes, key=lambda window: int(window.positions[0]))

    def _lane_windows(self, lane: int, first_batch: int, slots: range) -> Iterator[Window]:
        """The windows of a lane, with the positions that are in some slots of their batches."""
        first = first_batch * self._batch_size
        epoch = first // self.num_sources
        while True:
            count = int(self._positions_before(epoch * self.num_sources)[lane])
            for sources in self._lane_order(epoch, lane):
                numbers = count + np.arange(len(sources))
                batches, offsets = np.divmod(numbers, self._lane_clips)
                slot = lane * self._lane_clips + offsets
                positions = batches * self._batch_size + slot
                chosen = (positions >= first) & (slot >= slots.start) & (slot < slots.stop)
                if chosen.any():
                    yield Window(epoch, sources[chosen], positions[chosen])
                count += len(sources)
            epoch += 1

    def _positions_before(self, position: int) -> NDArray[np.int64]:
        """How many positions of each lane there are before a position."""
        batch, slot = divmod(position, self._batch_size)
        begins = np.arange(self.num_lanes) * self._lane_clips
        return batch * self._lane_clips + np.clip(slot - begins, 0, self._lane_clips)

    def _lane_order(self, epoch: int, lane: int) -> Iterator[NDArray[Any]]:
        """The sources of a lane in an epoch, window by window."""
        line = self._epoch(epoch)
        first = int(line.lane_ends[lane - 1]) if lane else 0
        stop = int(line.lane_ends[lane])
        first_group = int(np.searchsorted(line.ends, first, side="right"))
        stop_group = int(np.searchsorted(line.ends, stop, side="left")) + 1
        generator = self._lane_generator(epoch, lane)
        for begin in range(first_group, stop_group, self._window_groups):
            end = min(begin + self._window_groups, stop_group)
            parts = [self._group(group) for group in line.groups[begin:end].tolist()]
            sources = np.concatenate(parts)
            before = int(line.ends[begin - 1]) if begin else 0
            yield generator.permutation(sources[max(first - before, 0) : stop - before])

    def _lane_generator(self, epoch: int, lane: int) -> np.random.Generator:
        if self.num_lanes > 1:
            name = f"order of lane {lane}"
            return clip_generator(self._seed, epoch, self._dataset_id, name)
        generator, _ = self._draw_groups(epoch)
        return generator

    def _group(self, group: int) -> NDArray[Any]:
        first, stop = self._begins[group : group + 2]
        return np.arange(first, stop) if self._sources is None else self._sources[first:stop]

    def _shuffle_groups(self, epoch: int) -> _Epoch:
        _, groups = self._draw_groups(epoch)
        begin = epoch * self.num_sources
        lengths = self._positions_before(begin + self.num_sources) - self._positions_before(begin)
        ends = np.cumsum(np.diff(self._begins)[groups])
        return _Epoch(groups, ends, np.cumsum(lengths))

    def _draw_groups(self, epoch: int) -> tuple[np.random.Generator, NDArray[np.int64]]:
        generator = clip_generator(self._seed, epoch, self._dataset_id, "order")
        return generator, generator.permutation(len(self._begins) - 1)

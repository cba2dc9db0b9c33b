"""Clips for training: one of each source an epoch, whatever the number of workers.

`order` says which source is at which position of which batch, as a function of (dataset id, seed,
epoch); each worker takes its slice of each global batch, so the state of the feed is one integer:
the number of global batches consumed. `source_windows` says which windows a source has; the one
taken follows from (seed, epoch, id of the first segment), and only the row groups that it lies in
are read. With `epoch_unit="segment"` each segment counts as a source of its own.

    plan   windows of the order -> slots of batches        a few batches ahead, nothing is read
    read   row groups of a window -> copied into the slots  several threads, one row group each
    give   batches in order, each when its slots are full   a thread of its own, ReadAhead
"""

import os
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.config.pretrain import PretrainConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.clip_ids import read_clip_ids
from pipelines.errors import UserError
from pipelines.training.batch_arrays import BatchArrays, PendingBatch, Slot
from pipelines.training.order import Order, Window
from pipelines.training.read_ahead import FeedBatch, ReadAhead
from pipelines.training.source_windows import Piece, SourceWindows, WindowSize
from xkd_core.views.parameters import clip_generator

READ_THREADS = 4
"""Row groups of raw frames that a worker reads at a time."""
MAX_DECODE_THREADS = 16
"""Row groups of encoded frames that a worker reads at a time, at most; one for each CPU."""


@dataclass
class _Planned:
    """A window whose clips have their slots; then one that is being read."""

    first_batch: int
    last_batch: int
    slots: list[Slot]
    reads: list[Future[None]] = field(default_factory=list)


class Feed:
    """The training clips of one worker."""

    def __init__(
        self,
        dataset: ClipDataset,
        *,
        splits: Sequence[str],
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        shuffle_window: int,
        num_frames: int,
        frame_rate: float,
        num_samples: int,
        sample_rate: int,
        epoch_unit: Literal["source", "segment"] = "source",
        num_lanes: int | None = None,
        exclude: Collection[str] = (),
    ) -> None:
        _check_rate(dataset, "frame_rate", dataset.frame_rate, frame_rate)
        _check_rate(dataset, "sample_rate", dataset.sample_rate, sample_rate)
        if batch_size % world_size:
            raise ValueError(
                f"batch_size ({batch_size}) must be a multiple of world_size ({world_size})"
            )
        self._dataset, self._seed = dataset, seed
        self._batch_size, self._share = batch_size, batch_size // world_size
        self._rank, self._world_size = rank, world_size
        size = WindowSize(num_frames, num_samples, frame_rate, sample_rate)
        index = dataset.index
        rows = trainable_rows(dataset, splits, exclude)
        source_of_row = index.source_number if epoch_unit == "source" else None
        self._windows_of = SourceWindows(index, rows, source_of_row, size)
        first_rows = self._windows_of.first_rows
        self._order = Order(
            index.group[first_rows],
            first_rows,
            batch_size=batch_size,
            shuffle_window=shuffle_window,
            num_lanes=num_lanes,
            seed=seed,
            dataset_id=dataset.dataset_id,
        )
        self._arrays = BatchArrays(index, size)
        self._num_threads = _num_threads(dataset)
        self._readers: list[ReadAhead] = []

    @property
    def num_clips(self) -> int:
        """Clips an epoch: the sources (or segments) of the splits with picture and sound."""
        return self._order.num_sources

    @property
    def steps_per_epoch(self) -> float:
        """Global batches an epoch; not whole, because batches go over its end."""
        return self.num_clips / self._batch_size

    def batches(self, first_batch: int) -> Iterator[FeedBatch]:
        """Gives this worker's slices from a global batch on, without end, read ahead."""
        if not self.num_clips:
            raise UserError(
                f"dataset ({self._dataset.path}) has no clip with picture and sound in the splits "
                "that are trained on"
            )
        reader = ReadAhead(self._read(first_batch))
        self._readers.append(reader)
        return reader

    def close(self) -> None:
        """Ends reading ahead."""
        for reader in self._readers:
            reader.close()
        self._readers.clear()

    def _read(self, first_batch: int) -> Iterator[FeedBatch]:
        """Reads the windows of each batch, and some ahead while batches are used."""
        batches: dict[int, PendingBatch] = {}
        planned = self._plan(first_batch, batches)
        coming = next(planned)
        reading: deque[_Planned] = deque()
        pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="feed-window")
        try:
            for number in count(first_batch):
                while coming.first_batch <= number or not self._is_ahead(reading, number):
                    self._submit(coming, pool)
                    reading.append(coming)
                    coming = next(planned)
                while reading and reading[0].first_batch <= number:
                    self._finish(reading.popleft())
                yield self._arrays.whole(batches.pop(number))
        finally:
            pool.shutdown(cancel_futures=True)

    def _is_ahead(self, reading: Collection[_Planned], number: int) -> bool:
        """Whether reading is far enough beyond a batch: work for all threads, and another batch."""
        ahead = [window for window in reading if window.first_batch > number]
        num_reads = sum(len(window.reads) for window in ahead)
        return num_reads >= self._num_threads and sum(len(w.slots) for w in ahead) >= self._share

    def _plan(self, first_batch: int, batches: dict[int, PendingBatch]) -> Iterator[_Planned]:
        """Gives the windows that can be read: all clips of all their batches are known."""
        waiting: deque[_Planned] = deque()
        for window in self._order.windows(first_batch, self._rank, self._world_size):
            window_begin = int(window.positions[0]) // self._batch_size
            while waiting and waiting[0].last_batch < window_begin:
                yield waiting.popleft()
            waiting.append(self._give_slots(window, batches))

    def _give_slots(self, window: Window, batches: dict[int, PendingBatch]) -> _Planned:
        numbers, slots = np.divmod(window.positions, self._batch_size)
        slots -= self._rank * self._share
        planned = _Planned(int(numbers[0]), int(numbers[-1]), [])
        clips = zip(window.sources.tolist(), numbers.tolist(), slots.tolist(), strict=True)
        for source, number, slot in clips:
            batch = batches.setdefault(number, PendingBatch.of_size(self._share))
            planned.slots.append(self._draw(source, window.epoch, batch, slot))
        return planned

    def _draw(self, source: int, epoch: int, batch: PendingBatch, slot: int) -> Slot:
        """Draws a window of a source for a slot of a batch."""
        clip_id = self._dataset.index.clip_id[self._windows_of.first_row(source)]
        generator = clip_generator(self._seed, epoch, clip_id, "window")
        pieces = self._windows_of.draw(source, generator)
        batch.clip_ids[slot], batch.epochs[slot] = clip_id, epoch
        batch.rows[slot] = pieces[0].row
        return Slot(batch, slot, pieces)

    def _submit(self, window: _Planned, pool: ThreadPoolExecutor) -> None:
        """Begins to read a window, row group by row group."""
        by_group: dict[int, list[tuple[Slot, Piece]]] = {}
        for slot in window.slots:
            for piece in slot.pieces:
                group = int(self._dataset.index.group[piece.row])
                by_group.setdefault(group, []).append((slot, piece))
        window.reads = [
            pool.submit(self._fill, group, by_group[group]) for group in sorted(by_group)
        ]

    def _finish(self, window: _Planned) -> None:
        """Waits until a window is read."""
        for read in window.reads:
            read.result()
        for slot in window.slots:
            self._arrays.pad(slot)

    def _fill(self, number: int, pieces: Sequence[tuple[Slot, Piece]]) -> None:
        """Reads a row group and copies what is needed of it.

        Each piece is copied to its slot at once, while it is in the cache, and the row group's
        memory serves the next one: both are cheaper than to keep row groups until they are used.
        """
        group = self._dataset.read_group(number)
        for slot, piece in pieces:
            self._arrays.copy(slot, piece, group)


def make_feed(config: PretrainConfig, dataset: ClipDataset, *, rank: int, world_size: int) -> Feed:
    """Makes the feed of one worker.

    Raises:
        UserError: If the list of `exclude` cannot be read or the clips have other rates.
    """
    return Feed(
        dataset,
        splits=config.splits,
        batch_size=config.batch_size,
        rank=rank,
        world_size=world_size,
        seed=config.seed,
        shuffle_window=config.shuffle_window,
        num_frames=config.model.video.num_frames,
        frame_rate=config.model.video.frame_rate,
        num_samples=config.model.audio.num_samples,
        sample_rate=config.model.audio.sample_rate,
        epoch_unit=config.epoch_unit,
        num_lanes=config.num_lanes,
        exclude=read_clip_ids(config.exclude) if config.exclude else (),
    )


def _num_threads(dataset: ClipDataset) -> int:
    """Returns how many row groups to read at a time: decoding takes more CPUs than copying."""
    if dataset.frames_encoding == "raw":
        return READ_THREADS
    return min(max(READ_THREADS, len(os.sched_getaffinity(0))), MAX_DECODE_THREADS)


def _check_rate(dataset: ClipDataset, name: str, there: float, needed: float) -> None:
    if there != needed:
        raise UserError(
            f"dataset ({dataset.path}) has {name} {there:g}, but the model needs {needed:g}"
        )


def trainable_rows(
    dataset: ClipDataset, splits: Sequence[str], exclude: Collection[str]
) -> NDArray[np.int32]:
    """The rows that have both streams and belong to a split, or to none."""
    index = dataset.index
    chosen = (index.num_frames > 0) & index.has_audio & index.split.isin([*splits, ""])
    if exclude:
        chosen &= ~index.clip_id.isin(exclude)
    return np.flatnonzero(chosen).astype(np.int32)

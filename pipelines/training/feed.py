"""Clips in the order of training: one of each source an epoch, whatever the number of workers.

The order follows from (dataset id, seed, epoch): row groups are shuffled, and the sources in them
are shuffled within windows of row groups. A source belongs to the row group of its first segment.
The epochs' orders one after another are cut into global batches, and each worker takes its slice of
each, so the state of the feed is one integer: the number of global batches consumed. Which window
of a source is taken follows from (seed, epoch, id of its first segment), and only the row groups
that the window lies in are read. With `epoch_unit="segment"` each segment is a source of its own.
"""

import math
import queue
import threading
import weakref
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.dataset.clip_dataset import ClipDataset, ClipGroup
from pipelines.errors import UserError
from pipelines.training.source_windows import Piece, SourceWindows, WindowSize
from xkd_core.views.parameters import clip_generator
from xkd_core.views.views import ClipBatch

READ_AHEAD_BATCHES = 2
"""Batches that are ready before they are asked for."""


@dataclass(frozen=True)
class FeedBatch:
    """One worker's slice of a global batch."""

    clips: ClipBatch
    clip_ids: list[str]
    """Of the first segment of each source, whichever window of it was taken."""
    epochs: list[int]
    """A batch may begin in one epoch and end in the next."""


@dataclass(frozen=True)
class _Window:
    """Sources that are shuffled together, of which only this worker's are kept."""

    epoch: int
    sources: NDArray[np.int64]


@dataclass
class _Batch:
    """A batch whose clips are known but not read yet."""

    clip_ids: list[str] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    """The row that each window begins in."""
    frames: NDArray[np.uint8] | None = None
    waveform: NDArray[np.int16] | None = None


@dataclass(frozen=True)
class _Place:
    """Where a clip goes in a batch."""

    batch: _Batch
    number: int
    pieces: list[Piece]
    """Where it comes from."""


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
        exclude: Collection[str] = (),
    ) -> None:
        _check_rate(dataset, "frame_rate", dataset.frame_rate, frame_rate)
        _check_rate(dataset, "sample_rate", dataset.sample_rate, sample_rate)
        if batch_size % world_size:
            raise ValueError(
                f"batch_size ({batch_size}) must be a multiple of world_size ({world_size})"
            )
        self._dataset = dataset
        self._batch_size, self._rank, self._share = batch_size, rank, batch_size // world_size
        self._seed, self._shuffle_window = seed, shuffle_window
        self._size = WindowSize(num_frames, num_samples, frame_rate, sample_rate)
        index = dataset.index
        rows = _eligible_rows(dataset, splits, exclude)
        unit_of_row = index.source_number if epoch_unit == "source" else np.arange(len(index.group))
        self._windows_of = SourceWindows(index, rows, unit_of_row, self._size)
        self._groups = _groups(dataset, self._windows_of)
        self._pixels, self._sounds = _Memory(), _Memory()
        self._readers: list[_ReadAhead] = []

    @property
    def num_clips(self) -> int:
        """Clips an epoch: the sources (or segments) of the splits with picture and sound."""
        return len(self._windows_of.first_rows)

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
        reader = _ReadAhead(self._read(first_batch))
        self._readers.append(reader)
        return reader

    def close(self) -> None:
        """Ends reading ahead."""
        for reader in self._readers:
            reader.close()
        self._readers.clear()

    def _read(self, first_batch: int) -> Iterator[FeedBatch]:
        """Reads the next window while the present one is used."""
        with ThreadPoolExecutor(1, thread_name_prefix="feed-window") as pool:
            ready: Future[list[FeedBatch]] | None = None
            for places in self._places(first_batch):
                coming = pool.submit(self._load, places)
                if ready is not None:
                    yield from _drained(ready.result())
                ready = coming

    def _places(self, first_batch: int) -> Iterator[list[_Place]]:
        """Gives the places of each window's clips when all clips of their batches are known."""
        waiting: list[list[_Place]] = []
        batch = _Batch()
        for window in self._windows(first_batch):
            waiting.append([])
            for source in window.sources.tolist():
                waiting[-1].append(self._place(batch, source, window.epoch))
                if len(batch.rows) == self._share:
                    batch = _Batch()
            while waiting and waiting[0][-1].batch is not batch:
                yield waiting.pop(0)

    def _place(self, batch: _Batch, source: int, epoch: int) -> _Place:
        """Draws a window of a source and gives it the next place in a batch."""
        clip_id = str(self._dataset.index.clip_id[self._windows_of.first_rows[source]])
        generator = clip_generator(self._seed, epoch, clip_id, "window")
        start = int(generator.integers(self._windows_of.num_starts(source)))
        place = _Place(batch, len(batch.rows), self._windows_of.pieces(source, start))
        batch.clip_ids.append(clip_id)
        batch.epochs.append(epoch)
        batch.rows.append(place.pieces[0].row)
        return place

    def _windows(self, first_batch: int) -> Iterator[_Window]:
        """Gives windows from a global batch on, with this worker's sources of them."""
        first = first_batch * self._batch_size
        epoch = first // self.num_clips
        position = epoch * self.num_clips
        while True:
            for sources in self._order(epoch):
                positions = position + np.arange(len(sources))
                is_mine = (positions % self._batch_size) // self._share == self._rank
                chosen = sources[is_mine & (positions >= first)]
                if len(chosen):
                    yield _Window(epoch, chosen)
                position += len(sources)
            epoch += 1

    def _order(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        generator = clip_generator(self._seed, epoch, self._dataset.dataset_id, "order")
        groups = generator.permutation(len(self._groups))
        for begin in range(0, len(groups), self._shuffle_window):
            window = groups[begin : begin + self._shuffle_window]
            yield generator.permutation(np.concatenate([self._groups[group] for group in window]))

    def _load(self, places: Sequence[_Place]) -> list[FeedBatch]:
        """Reads a window row group by row group, and gives the batches that are whole with it.

        Each piece is copied to its place at once, while it is in the cache, and the row group's
        memory serves the next one: both are cheaper than to keep row groups until they are used.
        """
        index = self._dataset.index
        by_group: dict[int, list[tuple[_Place, Piece]]] = {}
        for place in places:
            for piece in place.pieces:
                by_group.setdefault(int(index.group[piece.row]), []).append((place, piece))
        for number in sorted(by_group):
            group = self._dataset.read_group(number)
            for place, piece in by_group[number]:
                self._fill(place, piece, group)
        for place in places:
            self._pad(place)
        last = self._share - 1
        return [self._whole(place.batch) for place in places if place.number == last]

    def _fill(self, place: _Place, piece: Piece, group: ClipGroup) -> None:
        """Copies picture and sound of a piece."""
        frames, waveform = group.frames(piece.row), group.waveform(piece.row)
        assert frames is not None
        assert waveform is not None
        frames, waveform = frames[piece.frames], waveform[piece.samples]
        all_frames, all_samples = self._arrays(place.batch)
        length, height, width = frames.shape[:3]
        first, stop = piece.first_frame, piece.first_frame + length
        all_frames[place.number, first:stop, :height, :width] = frames
        first, stop = piece.first_sample, piece.first_sample + len(waveform)
        all_samples[place.number, first:stop] = waveform

    def _pad(self, place: _Place) -> None:
        """Loops a picture that is too short and ends a sound that is too short in silence."""
        frames, samples = self._arrays(place.batch)
        last = place.pieces[-1]
        there = last.first_frame + last.frames.stop - last.frames.start
        if there < self._size.num_frames:
            looped = np.arange(there, self._size.num_frames) % there
            frames[place.number, there:] = frames[place.number, looped]
        there = last.first_sample + last.samples.stop - last.samples.start
        samples[place.number, there:] = 0

    def _arrays(self, batch: _Batch) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        if batch.frames is None or batch.waveform is None:
            batch.frames, batch.waveform = self._allocate(batch)
        return batch.frames, batch.waveform

    def _allocate(self, batch: _Batch) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        """Makes room for the largest frames; smaller ones are padded on the right and below."""
        index = self._dataset.index
        heights, widths = index.height[batch.rows], index.width[batch.rows]
        largest = int(heights.max()), int(widths.max())
        shape = (self._share, self._size.num_frames, *largest, 3)
        frames = self._pixels.take(shape, np.uint8)
        if not (heights == heights[0]).all() or not (widths == widths[0]).all():
            frames.fill(0)
        return frames, self._sounds.take((self._share, self._size.num_samples), np.int16)

    def _whole(self, batch: _Batch) -> FeedBatch:
        index = self._dataset.index
        clips = ClipBatch(
            frames=torch.from_numpy(batch.frames),
            heights=torch.from_numpy(index.height[batch.rows].astype(np.int64)),
            widths=torch.from_numpy(index.width[batch.rows].astype(np.int64)),
            waveform=torch.from_numpy(batch.waveform),
        )
        return FeedBatch(clips, batch.clip_ids, batch.epochs)


class _Memory:
    """Arrays in memory that is used again when nothing refers to the array before any more.

    New memory costs more than what is written to it: the system clears every page of it first.
    """

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def take(self, shape: tuple[int, ...], dtype: type[Any]) -> NDArray[Any]:
        """An array with anything in it."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        memory = self._free.pop() if self._free else None
        if memory is None or len(memory) < num_bytes:
            memory = np.empty(num_bytes, np.uint8)
        array = memory[:num_bytes].view(dtype).reshape(shape)
        # A tensor made of the array, and any view of it, keeps this very object.
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array


def _check_rate(dataset: ClipDataset, name: str, there: float, needed: float) -> None:
    if there != needed:
        raise UserError(
            f"dataset ({dataset.path}) has {name} {there:g}, but the model needs {needed:g}"
        )


def _eligible_rows(
    dataset: ClipDataset, splits: Sequence[str], exclude: Collection[str]
) -> NDArray[np.int64]:
    """The rows that have both streams and belong to a split, or to none."""
    index = dataset.index
    chosen = (index.num_frames > 0) & index.has_audio & np.isin(index.split, [*splits, ""])
    if exclude:
        chosen &= ~np.isin(index.clip_id, np.array(sorted(exclude)))
    return np.flatnonzero(chosen)


def _groups(dataset: ClipDataset, windows: SourceWindows) -> list[NDArray[np.int64]]:
    """The sources that begin in each row group, in the order of their first rows."""
    sources = np.argsort(windows.first_rows)
    if not len(sources):
        return []
    groups = dataset.index.group[windows.first_rows[sources]]
    return np.split(sources, np.flatnonzero(np.diff(groups)) + 1)


def _drained(batches: list[FeedBatch]) -> Iterator[FeedBatch]:
    """Gives a list's items and forgets each, so that its memory is free when it is used."""
    batches.reverse()
    while batches:
        yield batches.pop()


class _ReadAhead(Iterator[FeedBatch]):
    """Runs an iterator in a thread of its own, some items ahead."""

    def __init__(self, batches: Iterator[FeedBatch]) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(READ_AHEAD_BATCHES)
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._fill, args=(batches,), daemon=True, name="feed"
        )
        self._thread.start()

    def __next__(self) -> FeedBatch:
        while not self._closed.is_set():
            try:
                item = self._queue.get(timeout=1.0)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                self.close()
                raise item
            batch: FeedBatch = item
            return batch
        raise StopIteration

    def close(self) -> None:
        """Ends the thread; what it has ready is lost."""
        self._closed.set()

    def _fill(self, batches: Iterator[FeedBatch]) -> None:
        try:
            for batch in batches:
                if not self._put(batch):
                    return
        except Exception as error:  # raised again where the batch is asked for
            self._put(error)

    def _put(self, item: object) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

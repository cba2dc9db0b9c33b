"""Clips in the order of training: each exactly once an epoch, whatever the number of workers.

The order follows from (dataset id, seed, epoch): row groups are shuffled, and rows are shuffled
within windows of row groups. The epochs' orders one after another are cut into global batches, and
each worker takes its slice of each, so the state of the feed is one integer: the number of global
batches consumed. Which part of a clip is taken follows from (seed, epoch, clip id).
"""

import queue
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.clip_dataset import ClipDataset, ClipGroup
from pipelines.errors import UserError
from pipelines.windows import looped, padded
from xkd_core.views import ClipBatch, clip_generator

READ_AHEAD_BATCHES = 2
"""Batches that are ready before they are asked for."""


@dataclass(frozen=True)
class FeedBatch:
    """One worker's slice of a global batch."""

    clips: ClipBatch
    clip_ids: list[str]
    epochs: list[int]
    """A batch may begin in one epoch and end in the next."""


@dataclass(frozen=True)
class _Window:
    """Rows that are shuffled together, of which only this worker's are kept."""

    epoch: int
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class _Sample:
    """A clip cut to length; its arrays may share the memory of a row group."""

    clip_id: str
    epoch: int
    frames: NDArray[np.uint8]
    waveform: NDArray[np.int16]


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
        exclude: Collection[str] = (),
    ) -> None:
        _check_rate(dataset, "frame_rate", dataset.frame_rate, frame_rate)
        _check_rate(dataset, "sample_rate", dataset.sample_rate, sample_rate)
        if batch_size % world_size:
            raise ValueError(
                f"batch_size ({batch_size}) must be a multiple of world_size ({world_size})"
            )
        self._dataset = dataset
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._seed, self._shuffle_window = seed, shuffle_window
        self._num_frames, self._num_samples = num_frames, num_samples
        self._samples_per_frame = sample_rate / frame_rate
        self._groups = _eligible_groups(dataset, splits, exclude)
        self._readers: list[_ReadAhead] = []

    @property
    def num_clips(self) -> int:
        """Clips of the splits that have both picture and sound."""
        return sum(len(rows) for rows in self._groups)

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
        samples: list[_Sample] = []
        for sample in self._samples(first_batch):
            samples.append(sample)
            if len(samples) == self._batch_size // self._world_size:
                yield _stack(samples)
                samples = []

    def _samples(self, first_batch: int) -> Iterator[_Sample]:
        """Reads the next window while the present one is used."""
        with ThreadPoolExecutor(1, thread_name_prefix="feed-window") as pool:
            ready: Future[list[_Sample]] | None = None
            for window in self._windows(first_batch):
                coming = pool.submit(self._load, window)
                if ready is not None:
                    yield from _drained(ready.result())
                ready = coming

    def _windows(self, first_batch: int) -> Iterator[_Window]:
        """Gives windows from a global batch on, with this worker's rows of them."""
        first = first_batch * self._batch_size
        share = self._batch_size // self._world_size
        epoch = first // self.num_clips
        position = epoch * self.num_clips
        while True:
            for rows in self._order(epoch):
                positions = position + np.arange(len(rows))
                is_mine = (positions % self._batch_size) // share == self._rank
                chosen = rows[is_mine & (positions >= first)]
                if len(chosen):
                    yield _Window(epoch, chosen)
                position += len(rows)
            epoch += 1

    def _order(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        generator = clip_generator(self._seed, epoch, self._dataset.dataset_id, "order")
        groups = generator.permutation(len(self._groups))
        for begin in range(0, len(groups), self._shuffle_window):
            window = groups[begin : begin + self._shuffle_window]
            yield generator.permutation(np.concatenate([self._groups[group] for group in window]))

    def _load(self, window: _Window) -> list[_Sample]:
        row_groups = self._dataset.index.group[window.rows]
        samples: dict[int, _Sample] = {}
        for number in np.unique(row_groups).tolist():
            group = self._dataset.read_group(number)
            for row in window.rows[row_groups == number].tolist():
                samples[row] = self._cut(group, row, window.epoch)
        return [samples[row] for row in window.rows.tolist()]

    def _cut(self, group: ClipGroup, row: int, epoch: int) -> _Sample:
        """Takes the same random stretch of picture and sound."""
        frames, waveform = group.frames(row), group.waveform(row)
        assert frames is not None
        assert waveform is not None
        clip_id = str(self._dataset.index.clip_id[row])
        generator = clip_generator(self._seed, epoch, clip_id, "window")
        start = int(generator.integers(max(0, len(frames) - self._num_frames) + 1))
        frames = frames[start : start + self._num_frames]
        first_sample = round(start * self._samples_per_frame)
        waveform = waveform[first_sample : first_sample + self._num_samples]
        if len(frames) < self._num_frames:
            frames = looped(frames, self._num_frames)
        if len(waveform) < self._num_samples:
            waveform = padded(waveform, self._num_samples)
        if self._world_size > 1:
            # Without a copy the other workers' rows of the group would stay in memory as well.
            frames, waveform = frames.copy(), waveform.copy()
        return _Sample(clip_id, epoch, frames, waveform)


def _check_rate(dataset: ClipDataset, name: str, there: float, needed: float) -> None:
    if there != needed:
        raise UserError(
            f"dataset ({dataset.path}) has {name} {there:g}, but the model needs {needed:g}"
        )


def _eligible_groups(
    dataset: ClipDataset, splits: Sequence[str], exclude: Collection[str]
) -> list[NDArray[np.int64]]:
    """The rows of each row group that have both streams and belong to a split, or to none."""
    index = dataset.index
    chosen = (index.num_frames > 0) & index.has_audio & np.isin(index.split, [*splits, ""])
    if exclude:
        chosen &= ~np.isin(index.clip_id, np.array(sorted(exclude)))
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return []
    return np.split(rows, np.flatnonzero(np.diff(index.group[rows])) + 1)


def _drained(samples: list[_Sample]) -> Iterator[_Sample]:
    """Gives a list's items and forgets each, so that row groups that are used up are freed."""
    samples.reverse()
    while samples:
        yield samples.pop()


def _stack(samples: Sequence[_Sample]) -> FeedBatch:
    """Pads frames on the right and below to the largest of the batch."""
    heights = [sample.frames.shape[1] for sample in samples]
    widths = [sample.frames.shape[2] for sample in samples]
    shape = (len(samples), len(samples[0].frames), max(heights), max(widths), 3)
    is_even = len(set(heights)) == len(set(widths)) == 1
    frames = torch.empty(shape, dtype=torch.uint8)
    if not is_even:
        frames.zero_()
    pixels = frames.numpy()
    for i, sample in enumerate(samples):
        pixels[i, :, : heights[i], : widths[i]] = sample.frames
    clips = ClipBatch(
        frames=frames,
        heights=torch.tensor(heights),
        widths=torch.tensor(widths),
        waveform=torch.from_numpy(np.stack([sample.waveform for sample in samples])),
    )
    return FeedBatch(
        clips, [sample.clip_id for sample in samples], [sample.epoch for sample in samples]
    )


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

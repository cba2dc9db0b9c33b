"""Batches under construction: clips are copied into their slots as their row groups are read."""

import threading
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.dataset.clip_dataset import ClipGroup
from pipelines.dataset.index import ClipIndex
from pipelines.training.read_ahead import ArrayPool, FeedBatch
from pipelines.training.source_windows import Piece, WindowSize
from xkd_core.views.views import ClipBatch


@dataclass
class PendingBatch:
    """A batch whose clips may not be read yet."""

    clip_ids: list[str]
    epochs: list[int]
    rows: list[int]
    """The row that each window begins in."""
    frames: NDArray[np.uint8] | None = None
    waveform: NDArray[np.int16] | None = None

    @classmethod
    def of_size(cls, num_clips: int) -> "PendingBatch":
        """Makes a batch with empty slots."""
        return cls([""] * num_clips, [0] * num_clips, [0] * num_clips)


@dataclass(frozen=True)
class Slot:
    """Where a clip goes in a batch, and what it is made of."""

    batch: PendingBatch
    number: int
    pieces: list[Piece]


class BatchArrays:
    """Fills batches; `copy` may be called by several threads at a time."""

    def __init__(self, index: ClipIndex, size: WindowSize) -> None:
        self._index, self._size = index, size
        self._pixels, self._sounds = ArrayPool(), ArrayPool()
        self._allocating = threading.Lock()

    def copy(self, slot: Slot, piece: Piece, group: ClipGroup) -> None:
        """Copies picture and sound of a piece from its row group, once all rows are known."""
        frames, waveform = group.frames(piece.row, piece.frames), group.waveform(piece.row)
        assert frames is not None
        assert waveform is not None
        waveform = waveform[piece.samples]
        all_frames, all_samples = self._arrays(slot.batch)
        length, height, width = frames.shape[:3]
        first, stop = piece.first_frame, piece.first_frame + length
        all_frames[slot.number, first:stop, :height, :width] = frames
        first, stop = piece.first_sample, piece.first_sample + len(waveform)
        all_samples[slot.number, first:stop] = waveform

    def pad(self, slot: Slot) -> None:
        """Loops a picture that is too short and ends a sound that is too short in silence."""
        frames, samples = self._arrays(slot.batch)
        last = slot.pieces[-1]
        there = last.first_frame + last.frames.stop - last.frames.start
        if there < self._size.num_frames:
            looped = np.arange(there, self._size.num_frames) % there
            frames[slot.number, there:] = frames[slot.number, looped]
        there = last.first_sample + last.samples.stop - last.samples.start
        samples[slot.number, there:] = 0

    def whole(self, batch: PendingBatch) -> FeedBatch:
        """Gives a batch whose slots are all filled."""
        index = self._index
        clips = ClipBatch(
            frames=torch.from_numpy(batch.frames),
            heights=torch.from_numpy(index.height[batch.rows].astype(np.int64)),
            widths=torch.from_numpy(index.width[batch.rows].astype(np.int64)),
            waveform=torch.from_numpy(batch.waveform),
        )
        return FeedBatch(clips, batch.clip_ids, batch.epochs)

    def _arrays(self, batch: PendingBatch) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        with self._allocating:
            if batch.frames is None or batch.waveform is None:
                batch.frames, batch.waveform = self._allocate(batch)
            return batch.frames, batch.waveform

    def _allocate(self, batch: PendingBatch) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        """Makes room for the largest frames; smaller ones are padded on the right and below."""
        heights, widths = self._index.height[batch.rows], self._index.width[batch.rows]
        num_clips, largest = len(batch.rows), (int(heights.max()), int(widths.max()))
        frames = self._pixels.take((num_clips, self._size.num_frames, *largest, 3), np.uint8)
        if not (heights == heights[0]).all() or not (widths == widths[0]).all():
            frames.fill(0)
        return frames, self._sounds.take((num_clips, self._size.num_samples), np.int16)

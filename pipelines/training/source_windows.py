"""Which windows a source of a clip dataset has, and the rows that each window lies in.

A source is stored as segments, one a row. Rows that follow each other in time without a gap form a
run, and a window may lie anywhere in a run. A source of 10 s at 8 frames a second, stored as two
rows, has 49 windows of 32 frames:

    row 0: frames 0 to 39                    row 1: frames 40 to 79
    |----------------------------------------|----------------------------------------|
                    |--------------------------------|
                    window of start 16: frames 16 to 39 of row 0, frames 0 to 7 of row 1

Rows without picture or sound, excluded rows and stretches with nothing in them end a run. Only if
no run of a source is as long as a window is one of its runs taken whole, for the feed to pad.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.index import ClipIndex


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a window that lies in one row."""

    row: int
    frames: slice
    """Of the row."""
    samples: slice
    """Of the row."""
    first_frame: int
    """Of the window, where the piece begins."""
    first_sample: int


@dataclass(frozen=True)
class WindowSize:
    """How long a window is, and the clock of the dataset."""

    num_frames: int
    num_samples: int
    frame_rate: float
    sample_rate: int

    @property
    def samples_per_frame(self) -> float:
        """Samples a tick of the clock, maybe a fraction."""
        return self.sample_rate / self.frame_rate


class SourceWindows:
    """The windows of each source; a source is a number from 0 on.

    Ten million rows take 10 bytes each: what a source's runs are is found out when it is drawn.
    """

    def __init__(
        self,
        index: ClipIndex,
        rows: NDArray[np.int32],
        source_of_row: NDArray[np.int32] | None,
        size: WindowSize,
    ) -> None:
        """Joins rows to runs.

        Args:
            index: Of the dataset.
            rows: The rows to take windows from, ascending.
            source_of_row: Any number for each row of the dataset, equal within a source; None if
                each row is a source of its own.
            size: Of the windows.
        """
        self._index, self._size = index, size
        if source_of_row is None:
            self._rows = rows
            self._begins_run = np.ones(len(rows), bool)
            self._begins = np.arange(len(rows) + 1, dtype=np.int32)
            return
        sources = source_of_row[rows]
        ticks = np.rint(index.start_seconds[rows] * size.frame_rate).astype(np.int64)
        if not _is_sorted(sources, ticks):
            order = np.lexsort((rows, ticks, sources))
            rows, ticks, sources = rows[order], ticks[order], sources[order]
        # The same content under two names gives each segment twice; one of them is enough.
        is_new = _changes(sources) | _changes(ticks)
        if not is_new.all():
            rows, ticks, sources = rows[is_new], ticks[is_new], sources[is_new]
        begins_source = _changes(sources)
        self._rows = rows
        self._begins_run = begins_source | ~_follows(index, rows, ticks, size.samples_per_frame)
        self._begins = np.append(np.flatnonzero(begins_source), len(rows)).astype(np.int32)

    def __len__(self) -> int:
        return len(self._begins) - 1

    @property
    def first_rows(self) -> NDArray[np.int32]:
        """The first row in time of each source."""
        return self._rows[self._begins[:-1]]

    def first_row(self, source: int) -> int:
        """The first row in time of a source."""
        return int(self._rows[self._begins[source]])

    def draw(self, source: int, generator: np.random.Generator) -> list[Piece]:
        """Draws a window of a source, each start as likely as any other.

        Returns:
            The parts of the window, in the order of time.
        """
        first, stop = self._begins[source : source + 2]
        rows = self._rows[first:stop]
        frame_ends = np.cumsum(self._index.num_frames[rows], dtype=np.int64)
        run_begins = np.append(np.flatnonzero(self._begins_run[first:stop]), len(rows))
        lengths = np.diff(frame_ends[run_begins[1:] - 1], prepend=0)
        starts = np.maximum(lengths - self._size.num_frames + 1, 0)
        if not starts.any():
            starts[:] = 1
        start_ends = np.cumsum(starts)
        start = int(generator.integers(start_ends[-1]))
        run = int(np.searchsorted(start_ends, start, side="right"))
        begin, end = run_begins[run : run + 2].tolist()
        frame = start - (int(start_ends[run - 1]) if run else 0)
        return list(self._pieces(rows[begin:end], frame))

    def _pieces(self, rows: NDArray[np.int32], frame: int) -> Iterator[Piece]:
        """The parts of the window that begins at a frame of a run of rows."""
        size, index = self._size, self._index
        sample = round(frame * size.samples_per_frame)
        first_frame = first_sample = 0
        for row in rows.tolist():
            next_frame = first_frame + int(index.num_frames[row])
            next_sample = first_sample + int(index.num_samples[row])
            frames = _overlap(frame, size.num_frames, first_frame, next_frame)
            samples = _overlap(sample, size.num_samples, first_sample, next_sample)
            if frames.start < frames.stop or samples.start < samples.stop:
                yield Piece(
                    row=row,
                    frames=frames,
                    samples=samples,
                    first_frame=first_frame + frames.start - frame,
                    first_sample=first_sample + samples.start - sample,
                )
            elif first_frame >= frame + size.num_frames:
                return
            first_frame, first_sample = next_frame, next_sample


def _is_sorted(sources: NDArray[np.int32], ticks: NDArray[np.int64]) -> bool:
    """Whether rows are in the order of sources, and of time within each."""
    is_next = sources[1:] > sources[:-1]
    is_later = (sources[1:] == sources[:-1]) & (ticks[1:] >= ticks[:-1])
    return bool((is_next | is_later).all())


def _changes(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a value differs from the one before; the first one does."""
    changes = np.ones(len(values), bool)
    changes[1:] = values[1:] != values[:-1]
    return changes


def _follows(
    index: ClipIndex, rows: NDArray[np.int32], ticks: NDArray[np.int64], samples_per_frame: float
) -> NDArray[np.bool_]:
    """Whether each row begins where picture and sound of the row before it end."""
    frames, samples = index.num_frames[rows], index.num_samples[rows]
    first_samples = np.rint(ticks * samples_per_frame)
    follows = np.zeros(len(rows), bool)
    follows[1:] = (
        (np.diff(ticks) == frames[:-1])
        & (np.diff(first_samples) == samples[:-1])
        & ~_changes(index.height[rows])[1:]
        & ~_changes(index.width[rows])[1:]
    )
    return follows


def _overlap(first: int, length: int, row_begin: int, row_end: int) -> slice:
    """The part of a window in a row, counted from the row's begin; empty if there is none."""
    begin = min(max(first, row_begin), row_end)
    end = max(begin, min(first + length, row_end))
    return slice(begin - row_begin, end - row_begin)

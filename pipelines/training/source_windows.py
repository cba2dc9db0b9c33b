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
    """The windows of each source; a source is a number from 0 on."""

    first_rows: NDArray[np.int64]
    """The first row in time of each source."""

    def __init__(
        self,
        index: ClipIndex,
        rows: NDArray[np.int64],
        source_of_row: NDArray[np.integer[Any]],
        size: WindowSize,
    ) -> None:
        """Joins rows to runs.

        Args:
            index: Of the dataset.
            rows: The rows to take windows from.
            source_of_row: Any number for each row of the dataset, equal within a source.
            size: Of the windows.
        """
        self._size = size
        sources = source_of_row[rows]
        ticks = np.rint(index.start_seconds[rows] * size.frame_rate).astype(np.int64)
        order = np.lexsort((rows, ticks, sources))
        rows, ticks, sources = rows[order], ticks[order], sources[order]
        # The same content under two names gives each segment twice; one of them is enough.
        is_new = _changes(sources) | _changes(ticks)
        rows, ticks, sources = rows[is_new], ticks[is_new], sources[is_new]
        begins_run = _changes(sources) | ~_follows(index, rows, ticks, size.samples_per_frame)
        self._rows = rows
        self._frame_ends = np.cumsum(index.num_frames[rows], dtype=np.int64)
        self._sample_ends = np.cumsum(index.num_samples[rows], dtype=np.int64)
        self._run_begins = np.append(np.flatnonzero(begins_run), len(rows))
        self._source_begins = np.flatnonzero(_changes(sources)[begins_run])
        self._start_ends = np.cumsum(self._starts_of_runs())
        self.first_rows = rows[self._run_begins[self._source_begins]]

    def num_starts(self, source: int) -> int:
        """Windows of a source that differ in where they start, at least 1."""
        before, last = self._starts_of(source)
        return last - before

    def pieces(self, source: int, start: int) -> list[Piece]:
        """The parts of a window of a source in the order of time.

        Args:
            source: Number of the source.
            start: Which of its windows, from 0 up to `num_starts`.
        """
        before, _ = self._starts_of(source)
        run = int(np.searchsorted(self._start_ends, before + start, side="right"))
        frame = before + start - (int(self._start_ends[run - 1]) if run else 0)
        return list(self._pieces(run, frame))

    def _pieces(self, run: int, frame: int) -> Iterator[Piece]:
        """The parts of the window that begins at a frame of a run."""
        size = self._size
        sample = round(frame * size.samples_per_frame)
        begin, end = self._run_begins[run : run + 2].tolist()
        frames_before, samples_before = self._before(begin)
        frame, sample = frame + frames_before, sample + samples_before
        number = begin + int(np.searchsorted(self._frame_ends[begin:end], frame, side="right"))
        for place in range(number, end):
            frames_before, samples_before = self._before(place)
            frames = _overlap(frame, size.num_frames, frames_before, self._frame_ends[place])
            samples = _overlap(sample, size.num_samples, samples_before, self._sample_ends[place])
            if frames.start == frames.stop and samples.start == samples.stop:
                return
            yield Piece(
                row=int(self._rows[place]),
                frames=frames,
                samples=samples,
                first_frame=frames_before + frames.start - frame,
                first_sample=samples_before + samples.start - sample,
            )

    def _before(self, place: int) -> tuple[int, int]:
        """Frames and samples of all rows before the one at a place."""
        if not place:
            return 0, 0
        return int(self._frame_ends[place - 1]), int(self._sample_ends[place - 1])

    def _starts_of(self, source: int) -> tuple[int, int]:
        """Starts in all sources before one, and with it."""
        begins = self._source_begins
        first = int(begins[source])
        stop = int(begins[source + 1]) if source + 1 < len(begins) else len(self._start_ends)
        return int(self._start_ends[first - 1]) if first else 0, int(self._start_ends[stop - 1])

    def _starts_of_runs(self) -> NDArray[np.int64]:
        """How many windows start in each run: all starts of a source are equally likely."""
        if not len(self._rows):
            return np.zeros(0, np.int64)
        last = self._frame_ends[self._run_begins[1:] - 1]
        starts = np.maximum(np.diff(last, prepend=0) - self._size.num_frames + 1, 0)
        has_none = np.add.reduceat(starts, self._source_begins) == 0
        num_runs = np.diff(np.append(self._source_begins, len(starts)))
        return np.where(np.repeat(has_none, num_runs), 1, starts)


def _changes(values: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Where a value differs from the one before; the first one does."""
    changes = np.ones(len(values), bool)
    changes[1:] = values[1:] != values[:-1]
    return changes


def _follows(
    index: ClipIndex, rows: NDArray[np.int64], ticks: NDArray[np.int64], samples_per_frame: float
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
    """The part of a window in a row, counted from the row's begin."""
    begin = max(first, row_begin)
    end = max(begin, min(first + length, row_end))
    return slice(int(begin - row_begin), int(end - row_begin))

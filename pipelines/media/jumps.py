"""Finds the packets at which the clock of one stream jumps, ahead or back."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BACK_SECONDS = 0.1
"""A decoding time that steps back by more is a leap (as in the ffmpeg command)."""
AHEAD_SECONDS = 10.0
"""So is one that steps ahead by more, in formats with leaps (`-dts_delta_threshold`)."""
AHEAD_IN_STEADY_FORMATS_SECONDS = 300.0
"""In other formats, which keep one clock, up to a minute without packets is a pause."""
MAX_STRAY_PACKETS = 8
"""This many packets in a row may have wrong timestamps without a leap."""
REORDER_PACKETS = 17
"""A picture is presented at most this many packets after it is decoded (H.264 allows 16)."""
HOLE_PERIODS = 1.5
"""Pictures that are further apart than this many usual steps have room for others between them."""


@dataclass
class Clock:
    """Timestamps of one stream in seconds, in the order of the file."""

    order: NDArray[np.int64]
    """Positions among the packets of all streams."""
    start: NDArray[np.float64]
    """Presentation times; NaN if unknown."""
    decode: NDArray[np.float64]
    """Decoding times; never NaN."""
    duration: NDArray[np.float64]
    is_exact: bool
    """Whether the container states decoding times; otherwise FFmpeg guesses them."""

    def __len__(self) -> int:
        return len(self.order)

    def at(self, order: int) -> int:
        """Returns the index of the last packet before a position in the file; -1 if none."""
        return int(np.searchsorted(self.order, order)) - 1

    def step(self) -> float:
        """Returns the usual time between two packets."""
        steps = np.diff(self.decode)
        steps = steps[steps > 0]
        return float(np.median(steps)) if len(steps) else 0.0


def find_jumps(clock: Clock, may_leap: bool, is_alone: bool) -> list[int]:
    """Returns the packets at which a stream jumps. Isolated outliers are corrected instead.

    Some formats turn each jump ahead into a long duration. A long duration of a picture is
    believed if there is no other stream, or if the other stream continues meanwhile.
    """
    if len(clock) < 2:
        return []
    usual = clock.step()
    ahead = max(AHEAD_SECONDS if may_leap else AHEAD_IN_STEADY_FORMATS_SECONDS, 10 * usual)
    steps = np.diff(clock.decode)
    declared = clock.duration[:-1]
    expected = np.where((declared > 0) & is_alone, declared, usual)
    is_jump = (steps < -BACK_SECONDS) | (steps - expected > ahead)
    jumps = [int(at) + 1 for at in np.flatnonzero(is_jump)]
    if not clock.is_exact:
        jumps = [at for at in jumps if steps[at - 1] > 0 or _stays_back(clock, at)]
    kept: list[int] = []
    for at in jumps:
        first = kept[-1] if kept else 0
        if kept and at - first <= MAX_STRAY_PACKETS:
            back_in_line = clock.decode[first - 1] + (at - first + 1) * usual
            if abs(clock.decode[at] - back_in_line) <= max(0.5, 5 * usual):
                kept.pop()
                clock.decode[first:at] = clock.decode[first - 1]
                clock.start[first:at] = np.nan
                continue
        kept.append(at)
    return kept


def _stays_back(clock: Clock, at: int) -> bool:
    """Returns whether presentation times step back too, by more than reordering explains."""
    after = clock.start[at : at + REORDER_PACKETS]
    before = clock.start[max(0, at - REORDER_PACKETS) : at]
    if not np.isfinite(after).any() or not np.isfinite(before).any():
        return False
    if np.nanmax(after) >= np.nanmax(before) - BACK_SECONDS:
        return False
    is_end = len(clock) - at < REORDER_PACKETS
    return not (is_end and _fills_holes(after, before, np.unique(clock.start)))


def _fills_holes(
    after: NDArray[np.float64], before: NDArray[np.float64], all_starts: NDArray[np.float64]
) -> bool:
    """Returns whether the last pictures lie in holes between earlier ones, so were reordered.

    At the end of a stream, no later picture shows that the clock has gone on:

        decoded   0 s   10 s   5 s        shown   0 s   5 s   10 s
    """
    usual = float(np.median(np.diff(all_starts[np.isfinite(all_starts)])))
    before = np.sort(before[np.isfinite(before)])
    following = np.searchsorted(before, after[np.isfinite(after)])
    if following.min() < 1 or following.max() >= len(before):
        return False
    holes = before[following] - before[following - 1]
    return bool((holes > HOLE_PERIODS * usual).all())

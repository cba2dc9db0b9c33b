"""Moves the epochs of a source so that each begins where the one before it ends."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.media.jumps import REORDER_PACKETS, Clock
from pipelines.media.leaps import Leap

MAX_OVERLAP_SECONDS = 0.1
"""Sound may overlap this much at a leap, because codecs pad both ends of a file."""


@dataclass
class Epochs:
    """The epochs of a source on one timeline."""

    offsets: list[NDArray[np.float64]]
    """Offsets of the timestamps of each packet, for each stream."""
    leaps: list[float] = field(default_factory=list)
    """Times of the leaps."""
    unseen: list[tuple[float, float]] = field(default_factory=list)
    """Where epochs begin, and where their picture begins, or where they end without one."""


def arranged(clocks: Sequence[Clock], leaps: Sequence[Leap]) -> Epochs:
    """Arranges the epochs of a source one after another.

    An epoch begins where the one before it ends: its picture follows the last picture, or begins
    later if the sound would otherwise overlap by more than codecs pad.

    Args:
        clocks: The streams, the picture first.
        leaps: From `find_leaps`.
    """
    epochs = Epochs([np.zeros(len(clock)) for clock in clocks])
    ends: list[float | None] = [None] * len(clocks)
    begins = [{0: 0} for _ in clocks]
    for leap in leaps:
        if leap.epoch is not None:
            begins[leap.stream].setdefault(leap.epoch, leap.packet)
    for epoch in range(max(max(of) for of in begins) + 1):
        spans = [_span(clock, of, epoch) for clock, of in zip(clocks, begins, strict=True)]
        offset = _offset(clocks, spans, ends) if epoch else 0.0
        starts = []
        for stream, span in enumerate(spans):
            if span is None:
                continue
            first, stop = span
            _drop_foreign(clocks[stream], first, stop)
            epochs.offsets[stream][first:stop] = offset
            start, end = extent(clocks[stream], first, stop)
            starts.append(start + offset)
            ends[stream] = max(end + offset, ends[stream] or -np.inf)
        if epoch and starts:
            epochs.leaps.append(min(starts))
            # Until its own picture begins, no other one is shown.
            seen = starts[0] if spans[0] is not None else ends[-1]
            epochs.unseen.append((min(starts), seen or min(starts)))
    epochs.leaps += _times_alone(clocks, leaps, epochs.offsets)
    epochs.leaps.sort()
    return epochs


def _times_alone(
    clocks: Sequence[Clock], leaps: Sequence[Leap], offsets: Sequence[NDArray[np.float64]]
) -> list[float]:
    """Returns when streams leapt alone."""
    alone = [leap for leap in leaps if leap.epoch is None]
    return [float((clocks[x.stream].decode + offsets[x.stream])[x.packet]) for x in alone]


def _drop_foreign(clock: Clock, first: int, stop: int) -> None:
    """Removes presentation times that do not fit their epoch, which FFmpeg guesses at leaps."""
    slack = 1.0 + REORDER_PACKETS * clock.step()
    starts = clock.start[first:stop]
    is_foreign = starts > clock.decode[stop - 1] + slack
    is_foreign |= starts < clock.decode[first] - slack
    starts[is_foreign] = np.nan


def _span(clock: Clock, begins: dict[int, int], epoch: int) -> tuple[int, int] | None:
    """Returns the packets of a stream in an epoch, which may have none."""
    if epoch not in begins:
        return None
    first = begins[epoch]
    later = [packet for number, packet in begins.items() if number > epoch]
    stop = min(later, default=len(clock))
    return (first, stop) if stop > first else None


def _offset(
    clocks: Sequence[Clock], spans: Sequence[tuple[int, int] | None], ends: Sequence[float | None]
) -> float:
    needed = []
    for clock, span, end in zip(clocks, spans, ends, strict=True):
        if span is not None and end is not None:
            needed.append(end - extent(clock, *span)[0])
    if not needed:
        starts = [extent(c, *span)[0] for c, span in zip(clocks, spans, strict=True) if span]
        return max((end for end in ends if end is not None), default=0.0) - min(starts)
    # A file of one stream follows the other stream too.
    start = min(extent(clock, *span)[0] for clock, span in zip(clocks, spans, strict=True) if span)
    absent = [end for span, end in zip(spans, ends, strict=True) if span is None]
    needed += [end - start for end in absent if end is not None]
    first, last = needed[0], max(needed)
    return first if last - first <= MAX_OVERLAP_SECONDS else last


def extent(clock: Clock, first: int, stop: int) -> tuple[float, float]:
    """Returns the first and the last time at which packets are presented."""
    starts = clock.start[first:stop]
    known = np.flatnonzero(np.isfinite(starts))
    if not len(known):
        return float(clock.decode[first]), float(clock.decode[stop - 1])
    last = known[np.argmax(starts[known])]
    steps = np.diff(np.sort(starts[known]))
    usual = float(np.median(steps)) if len(steps) else 0.0
    declared = float(clock.duration[first + last])
    # Declared durations are less reliable than distances for pictures, and more for sound.
    duration = declared if 0 < declared <= 2 * usual or not usual else usual
    return float(np.min(starts[known])), float(starts[last]) + duration

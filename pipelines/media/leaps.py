"""Finds leaps in the clock of a source, and the offsets that make both streams continuous.

Where files were joined, a broadcast restarted or a live stream switched, timestamps leap back or
far ahead, and another clock, an *epoch*, begins. Each stream leaps at a packet of its own. Until
both have leapt, packets of two epochs interleave:

    file     V0 A0 V1 A1 V2 | V0 A2 V1 A0 V2 A1     letter: stream, number: timestamp
    epoch    0  0  0  0  0  | 1  0  1  1  1  1      A2 still belongs to the first file

One offset per epoch moves picture and sound together, as the ffmpeg command does for formats with
discontinuous clocks. If only one stream jumps, it is no leap: a jump ahead is a gap, during which
the other stream continues, and after a jump back the timestamps are used as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BACK_SECONDS = 0.1
"""A decoding time that steps back by more is a leap (as in the ffmpeg command)."""
AHEAD_SECONDS = 10.0
"""So is one that steps ahead by more, in formats with leaps (`-dts_delta_threshold`)."""
AHEAD_IN_STEADY_FORMATS_SECONDS = 300.0
"""In other formats, which keep one clock, up to a minute without packets is a pause."""
NEAR_SECONDS = 10.0
"""Packets that are neighbors in the file are this close in time."""
LAG_SECONDS = 5.0
"""A stream follows the leap of the other one within this much of its own content."""
MAX_OVERLAP_SECONDS = 0.1
"""Sound may overlap this much at a leap, because codecs pad both ends of a file."""
MAX_STRAY_PACKETS = 8
"""This many packets in a row may have wrong timestamps without a leap."""
REORDER_PACKETS = 17
"""A picture is presented at most this many packets after it is decoded (H.264 allows 16)."""


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


@dataclass(frozen=True)
class Leap:
    """The packet at which a stream enters an epoch."""

    stream: int
    packet: int
    epoch: int | None
    """None if this stream leapt alone; its clock is then already corrected."""


def find_leaps(clocks: Sequence[Clock], may_leap: bool) -> list[Leap]:
    """Finds the epochs of one stream, or of a picture and a sound stream.

    Args:
        clocks: One or two streams. Stray timestamps are corrected in place.
        may_leap: Whether the format allows discontinuous clocks.

    Returns:
        The packets at which streams enter an epoch, in the order of the file.
    """
    events = []
    for stream, clock in enumerate(clocks):
        jumps = _jumps(clock, may_leap, is_alone=len(clocks) == 1)
        events += [(int(clock.order[packet]), stream, packet) for packet in jumps]
    search = _Search(clocks, sorted(events))
    if len(clocks) == 2 and all(len(clock) for clock in clocks):
        search.align_starts(AHEAD_SECONDS if may_leap else AHEAD_IN_STEADY_FORMATS_SECONDS)
    for number in range(len(search.events)):
        search.judge(number)
    return search.leaps


def _jumps(clock: Clock, may_leap: bool, is_alone: bool) -> list[int]:
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
    return bool(np.nanmax(after) < np.nanmax(before) - BACK_SECONDS)


class _Search:
    """A pass over the jumps of all streams in the order of the file."""

    def __init__(self, clocks: Sequence[Clock], events: list[tuple[int, int, int]]) -> None:
        self.clocks = clocks
        self.events = events
        self.leaps: list[Leap] = []
        self._newest = 0
        self._epochs = [0] * len(clocks)

    def judge(self, number: int) -> None:
        """Decides whether one jump is a leap, a gap or an error."""
        order, stream, packet = self.events[number]
        clock = self.clocks[stream]
        now, before = clock.decode[packet], clock.decode[packet - 1]
        others = [other for other in range(len(self.clocks)) if other != stream]
        if not others or not len(self.clocks[others[0]]):
            self._leap(stream, packet, is_new=True)
            return
        other = others[0]
        distance = self._distance(other, order, now)
        if self._epochs[stream] < self._newest and distance <= NEAR_SECONDS:
            self._leap(stream, packet, is_new=False)
        elif self._is_gap(stream, packet, distance):
            return
        elif self._other_follows(number, other, order, now):
            self._leap(stream, packet, is_new=True)
        elif abs(now - before) > AHEAD_SECONDS:
            # Nothing relates the two clocks, so each stream continues by itself.
            self._move(stream, packet, before + clock.step() - now)

    def align_starts(self, max_seconds: float) -> None:
        """Makes both streams begin together if their clocks are unrelated."""
        later = int(self.clocks[1].order[0] > self.clocks[0].order[0])
        now = self.clocks[later].decode[0]
        other = self.clocks[1 - later]
        there = other.decode[other.at(int(self.clocks[later].order[0]))]
        if abs(now - there) > max_seconds:
            self._move(later, 0, there - now)

    def _move(self, stream: int, packet: int, seconds: float) -> None:
        clock = self.clocks[stream]
        clock.decode[packet:] += seconds
        clock.start[packet:] += seconds
        self.leaps.append(Leap(stream, packet, None))

    def _leap(self, stream: int, packet: int, *, is_new: bool) -> None:
        self._newest += is_new
        self._epochs[stream] = self._newest
        self.leaps.append(Leap(stream, packet, self._newest))

    def _distance(self, other: int, order: int, now: float) -> float:
        clock = self.clocks[other]
        return abs(now - float(clock.decode[max(0, clock.at(order))]))

    def _is_gap(self, stream: int, packet: int, distance: float) -> bool:
        clock = self.clocks[stream]
        is_ahead = clock.decode[packet] > clock.decode[packet - 1]
        return bool(is_ahead) and distance <= NEAR_SECONDS

    def _other_follows(self, number: int, other: int, order: int, now: float) -> bool:
        """Returns whether the other stream soon leaps to about the same time, or ends."""
        clock = self.clocks[other]
        last = clock.at(order)
        if last == len(clock) - 1:
            return True
        for later_order, stream, packet in self.events[number + 1 :]:
            if stream != other:
                continue
            if later_order > order:
                content = clock.decode[packet - 1] - clock.decode[max(0, last)]
                is_near = abs(clock.decode[packet] - now) <= NEAR_SECONDS
                return bool(content <= LAG_SECONDS and is_near)
        return False


def epoch_offsets(
    clocks: Sequence[Clock], leaps: Sequence[Leap]
) -> tuple[list[NDArray[np.float64]], list[float]]:
    """Returns the offsets of the timestamps of each packet, and the resulting times of leaps.

    An epoch begins where the one before it ends: its picture follows the last picture, or begins
    later if the sound would otherwise overlap by more than codecs pad.

    Args:
        clocks: The streams, the picture first.
        leaps: From `find_leaps`.
    """
    offsets = [np.zeros(len(clock)) for clock in clocks]
    ends: list[float | None] = [None] * len(clocks)
    times: list[float] = []
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
            offsets[stream][first:stop] = offset
            start, end = extent(clocks[stream], first, stop)
            starts.append(start + offset)
            ends[stream] = max(end + offset, ends[stream] or -np.inf)
        if epoch and starts:
            times.append(min(starts))
    alone = [leap for leap in leaps if leap.epoch is None]
    times += [float((clocks[x.stream].decode + offsets[x.stream])[x.packet]) for x in alone]
    return offsets, sorted(times)


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

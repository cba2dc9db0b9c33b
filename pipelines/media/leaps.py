"""Finds leaps in the clock of a source, and the offsets that make both streams continuous.

Where files were joined, a broadcast restarted or a live stream switched, timestamps leap back or
far ahead, and another clock, an *epoch*, begins. Each stream leaps at a packet of its own. Until
both have leapt, packets of two epochs interleave:

    file     V0 A0 V1 A1 V2 | V0 A2 V1 A0 V2 A1     letter: stream, number: timestamp
    epoch    0  0  0  0  0  | 1  0  1  1  1  1      A2 still belongs to the first file

One offset per epoch moves picture and sound together, as the ffmpeg command does for formats with
discontinuous clocks. A file without sound, or without a picture, between others is an epoch of one
stream: the other stream skips it, and joins the leap that is nearer in time.

    file     V0 A0 V1 A1 | V0 V1 V2 V3 | A0 V0 A1 V1
    epoch    0  0  0  0  | 1  1  1  1  | 2  2  2  2      and not epoch 1 for A0 and A1

Two files of one stream each, V0 V1 V2 | A0 A1 A2, are two epochs too: one file interleaves them.

If only one stream jumps ahead, it is a gap, during which the other stream continues. If only one
steps back, the other one pauses there, and both leap; in formats with one clock, it is no leap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.media.jumps import AHEAD_IN_STEADY_FORMATS_SECONDS, AHEAD_SECONDS, Clock, find_jumps

WRAP_SECONDS = 2**33 / 90_000
"""The clock of transport and program streams wraps after this long."""
NEAR_SECONDS = 10.0
"""Packets that are neighbors in the file are this close in time."""
LAG_SECONDS = 5.0
"""A stream follows the leap of the other one within this much of its own content."""
NEARER_SECONDS = 1.0
"""A stream that leaps belongs to the next leap of the other one, instead of the last one, if it is
nearer in time by more than this."""
MAX_HELD_PACKETS = 3
"""FFmpeg holds back this many packets of a stream until the end of the file."""


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
        jumps = find_jumps(clock, may_leap, is_alone=len(clocks) == 1)
        events += [(int(clock.order[packet]), stream, packet) for packet in jumps]
    are_both = len(clocks) == 2 and all(len(clock) for clock in clocks)
    if are_both:
        later = int(clocks[1].order[0] > clocks[0].order[0])
        events.append((int(clocks[later].order[0]), later, 0))
    search = _Search(clocks, sorted(events), may_leap)
    if are_both:
        search.align_starts(AHEAD_SECONDS if may_leap else AHEAD_IN_STEADY_FORMATS_SECONDS)
    for number in range(len(search.events)):
        search.judge(number)
    return search.leaps


class _Search:
    """A pass over the jumps of all streams, and the beginning of the later one.

    Events are in the order of the file: position, stream, and packet in the stream.
    """

    def __init__(
        self, clocks: Sequence[Clock], events: list[tuple[int, int, int]], may_leap: bool
    ) -> None:
        self.clocks = clocks
        self._may_leap = may_leap
        self.events = events
        self.leaps: list[Leap] = []
        self._newest = 0
        self._epochs = [0] * len(clocks)

    def judge(self, number: int) -> None:
        """Decides whether one jump is a leap, a gap or an error."""
        order, stream, packet = self.events[number]
        clock = self.clocks[stream]
        now = clock.decode[packet]
        others = [other for other in range(len(self.clocks)) if other != stream]
        if not others or not len(self.clocks[others[0]]):
            self._leap(stream, packet, is_new=True)
            return
        other = others[0]
        distance = self._distance(other, order, now)
        joins = self._epochs[stream] < self._newest and distance <= NEAR_SECONDS
        if joins or packet == 0:
            is_new = self._is_nearer_next(number, other, now, distance)
            is_new |= self._is_apart(number, other, distance)
            if is_new or joins:
                self._leap(stream, packet, is_new=is_new)
        elif self._epochs[stream] == self._epochs[other] and self._is_gap(stream, packet, distance):
            return
        elif self._other_follows(number, other, order, now):
            self._leap(stream, packet, is_new=True)
        elif abs(now - clock.decode[packet - 1]) > AHEAD_SECONDS:
            # Nothing relates the two clocks, so each stream continues by itself.
            self._move(stream, packet, clock.decode[packet - 1] + clock.step() - now)
        elif self._may_leap and now < clock.decode[packet - 1]:
            # The other stream pauses for about as long as the clock steps back.
            self._leap(stream, packet, is_new=True)
            self._leap(other, self._pause(other, order), is_new=False)

    def _pause(self, other: int, order: int) -> int:
        """Returns the packet of the next second whose step in time is the most unusual.

        It is the first one if the other stream has only just begun, with the file that follows.
        """
        clock = self.clocks[other]
        if self._has_just_begun(other, order):
            return 0
        first = max(1, clock.at(order) + 1)
        stop = first + 1 + round(NEARER_SECONDS / (clock.step() or NEARER_SECONDS))
        steps = np.diff(clock.decode[first - 1 : stop])
        return first + int(np.argmax(np.abs(steps - clock.step()))) if len(steps) else 0

    def _has_just_begun(self, other: int, order: int) -> bool:
        """Returns whether a stream began after the last packet of the one that leaps."""
        leaping = self.clocks[1 - other]
        last = leaping.at(order)
        alone = leaping.decode[last] - leaping.decode[0]
        return bool(leaping.order[last] < self.clocks[other].order[0] and alone > NEARER_SECONDS)

    def align_starts(self, max_seconds: float) -> None:
        """Makes both streams begin together if their clocks are unrelated."""
        later = int(self.clocks[1].order[0] > self.clocks[0].order[0])
        now = self.clocks[later].decode[0]
        other = self.clocks[1 - later]
        before = other.at(int(self.clocks[later].order[0]))
        # If one stream lies behind the other in the file, their order says nothing about time. A
        # still picture of a transport stream is such a stream: FFmpeg only finds it at the end.
        there = other.decode[before if before < len(other) - 1 else 0]
        begins = next(at for at, event in enumerate(self.events) if event[1:] == (later, 0))
        following = self._next(begins, 1 - later)
        leaps_there = following is not None and max(following[0], abs(following[1] - now)) <= 1.0
        is_apart = self._is_apart(begins, 1 - later, abs(now - float(other.decode[before])))
        # FFmpeg may find that the clock of one stream has wrapped, and not that of the other.
        wraps = round((there - now) / WRAP_SECONDS) * WRAP_SECONDS
        if wraps and abs(now + wraps - there) <= max_seconds:
            self._move(later, 0, wraps, is_leap=False)
        elif abs(now - there) > max_seconds and not (leaps_there or is_apart):
            self._move(later, 0, there - now)

    def _move(self, stream: int, packet: int, seconds: float, *, is_leap: bool = True) -> None:
        clock = self.clocks[stream]
        clock.decode[packet:] += seconds
        clock.start[packet:] += seconds
        if is_leap:
            self.leaps.append(Leap(stream, packet, None))

    def _leap(self, stream: int, packet: int, *, is_new: bool) -> None:
        self._newest += is_new
        self._epochs[stream] = self._newest
        self.leaps.append(Leap(stream, packet, self._newest))

    def _distance(self, other: int, order: int, now: float) -> float:
        clock = self.clocks[other]
        last = clock.at(order)
        return abs(now - float(clock.decode[last])) if last >= 0 else np.inf

    def _is_gap(self, stream: int, packet: int, distance: float) -> bool:
        clock = self.clocks[stream]
        is_ahead = clock.decode[packet] > clock.decode[packet - 1]
        return bool(is_ahead) and distance <= NEAR_SECONDS

    def _other_follows(self, number: int, other: int, order: int, now: float) -> bool:
        """Returns whether the other stream soon leaps to about the same time, or ends."""
        clock = self.clocks[other]
        if clock.at(order) >= len(clock) - 1 - MAX_HELD_PACKETS:
            return True
        following = self._next(number, other)
        if following is None:
            return False
        content, then = following
        if abs(then - now) <= NEAR_SECONDS:
            return content <= LAG_SECONDS
        return content <= NEARER_SECONDS and self._meets(number, then)

    def _meets(self, number: int, time: float) -> bool:
        """Returns whether a stream later leaps to about a time, at which it meets the other one."""
        stream = self.events[number][1]
        later = (p for _, s, p in self.events[number + 1 :] if s == stream)
        return any(abs(self.clocks[stream].decode[p] - time) <= NEAR_SECONDS for p in later)

    def _is_nearer_next(self, number: int, other: int, now: float, distance: float) -> bool:
        """Returns whether the other stream soon leaps to a time that is nearer than its own."""
        following = self._next(number, other)
        if following is None:
            return False
        content, then = following
        return max(content, abs(then - now)) + NEARER_SECONDS < distance

    def _is_apart(self, number: int, other: int, distance: float) -> bool:
        """Returns whether the other stream is over, but for last packets, where a stream begins."""
        order, stream, packet = self.events[number]
        first = self.clocks[other].at(order) + 1
        later = (p for at, s, p in self.events[number + 1 :] if s == other and at > order)
        num_left = next(later, len(self.clocks[other])) - first
        num_own = len(self.clocks[stream]) - packet
        is_over = first > 0 and num_left <= MAX_HELD_PACKETS < num_own
        return self._may_leap and is_over and distance > NEARER_SECONDS

    def _next(self, number: int, other: int) -> tuple[float, float] | None:
        """Returns how much of a stream remains before its next event, and the time of that."""
        clock = self.clocks[other]
        order = self.events[number][0]
        for later_order, stream, packet in self.events[number + 1 :]:
            if stream == other and later_order > order:
                last = max(0, clock.at(order))
                content = clock.decode[packet - 1] - clock.decode[last] if packet else 0.0
                return float(content), float(clock.decode[packet])
        return None

"""Builds one timeline for the picture and the sound of a source from its packets.

`build_timeline` computes when each packet is presented. Times are the container's, in seconds, but
without leaps of its clock (`leaps`) and without wobble (`sound_clock`). Where the container has no
presentation times, they follow from the order of frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from av.container import InputContainer
from av.format import Flags
from numpy.typing import NDArray

from pipelines.media.epochs import arranged
from pipelines.media.jumps import (
    AHEAD_IN_STEADY_FORMATS_SECONDS,
    AHEAD_SECONDS,
    MAX_STRAY_PACKETS,
    Clock,
)
from pipelines.media.leaps import find_leaps
from pipelines.media.packets import PacketScan, PacketTable
from pipelines.media.picture_gaps import picture_gaps
from pipelines.media.sound_clock import sound_times

UNTIMED_FORMATS = frozenset({"avi"})
"""Formats that number packets and store no presentation times of pictures."""
GUESSING_FORMATS = frozenset({"matroska,webm"})
"""Formats without decoding times, which FFmpeg guesses from presentation times."""
SORTING_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2"})
"""Formats whose packets FFmpeg reads in the order of decoding times."""

MAX_DELAY_SECONDS = 60.0
"""If decoding and presentation are further apart, one of the two times is damaged."""
FOLLOWING_SECONDS = 0.5
"""The decoding time is right if it follows the one before within this much."""


@dataclass(frozen=True)
class StreamTimeline:
    """The packets of one stream on the timeline of the source, in the order of the file."""

    starts: NDArray[np.float64]
    """Presentation times; NaN where they follow from the packets before."""
    due: NDArray[np.float64]
    """Times when packets are due for decoding; they never decrease."""
    is_break: NDArray[np.bool_]
    """Whether there is a hole in the sound before a packet."""
    shown: NDArray[np.float64]
    """Sorted times when pictures begin."""
    is_by_order: bool
    """Whether the n-th frame from the decoder begins at `shown[n]`."""
    is_trusted: bool
    """Whether timestamps are measured rather than counted."""
    is_followed: bool = False
    """Whether the picture follows the timestamps of the sound where they drift from its samples."""
    unseen: list[tuple[float, float]] = field(default_factory=list)
    """Where joined files begin, and where their picture begins, or where they end without one."""

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True)
class Timeline:
    """The timeline of a source, in seconds."""

    streams: dict[int, StreamTimeline]
    """By index of the stream, without streams that have no packets."""
    leaps: list[float] = field(default_factory=list)
    """Times when the clock leapt, for both streams together."""
    bridged: list[float] = field(default_factory=list)
    """Times when timestamps of the sound were off without a hole."""
    picture_gaps: list[float] = field(default_factory=list)
    """Times when pictures begin that stay on during a gap between pictures of a constant rate."""

    def skew(self, scan: PacketScan) -> float:
        """Returns the time between streams at the same position in the file, in seconds."""
        orders = [scan.tables[index].order for index in self.streams]
        due = np.concatenate([stream.due for stream in self.streams.values()])
        due = due[np.argsort(np.concatenate(orders))]
        return float((np.maximum.accumulate(due) - due).max()) if len(due) else 0.0


def build_timeline(
    container: InputContainer,
    scan: PacketScan,
    video: int | None,
    audio: int | None,
    *,
    pictures_by_order: bool = False,
) -> Timeline:
    """Computes when the packets of a picture and a sound stream are presented.

    Args:
        container: The source, for the properties of its format.
        scan: Its packets.
        video: Index of the picture's stream.
        audio: Index of the sound's stream.
        pictures_by_order: Whether the times of the pictures are decoding times.
    """
    is_untimed = container.format.name in UNTIMED_FORMATS or _has(container, Flags.no_timestamps)
    indices = [index for index in (video, audio) if index is not None and len(scan.tables[index])]
    tables = [scan.tables[index] for index in indices]
    is_exact = container.format.name not in GUESSING_FORMATS
    clocks = [_clock(table, is_exact) for table in tables]
    if container.format.name in SORTING_FORMATS:
        _order_as_in_file(clocks, [table.position[kept_packets(table)] for table in tables])
    if is_untimed:
        correct_ends(clocks)
    leaps = [] if is_untimed else find_leaps(clocks, _has(container, Flags.ts_discont))
    if not clocks:
        return Timeline({})
    epochs = arranged(clocks, leaps)
    timeline = Timeline({}, epochs.leaps, [])
    for number, (index, clock) in enumerate(zip(indices, clocks, strict=True)):
        first = {leap.packet for leap in leaps if leap.stream == number}
        moved = replace(clock, start=clock.start + epochs.offsets[number])
        moved.decode += epochs.offsets[number]
        if index == video:
            found = replace(_picture(moved, is_untimed or pictures_by_order), unseen=epochs.unseen)
            timeline.picture_gaps.extend(picture_gaps(found.shown, epochs.leaps))
        else:
            found, bridged = _sound(moved, sorted(first), not is_untimed)
            timeline.bridged.extend(bridged)
        timeline.streams[index] = _with_hidden(found, tables[number])
    if video in timeline.streams and audio in timeline.streams:
        picture, sound = timeline.streams[video], timeline.streams[audio]
        is_followed = _is_followed(picture, sound, scan.tables[audio].duration)
        timeline.streams[audio] = replace(sound, is_followed=is_followed)
    return timeline


def correct_ends(clocks: Sequence[Clock]) -> None:
    """Moves last packets that lie minutes after all others, as in a damaged index of an AVI."""
    for clock in clocks:
        first = max(1, len(clock) - MAX_STRAY_PACKETS)
        jumps = np.flatnonzero(np.diff(clock.decode[first - 1 :]) > AHEAD_IN_STEADY_FORMATS_SECONDS)
        others = [each.decode.max() for each in clocks if each is not clock and len(each)]
        if len(jumps) and max(others, default=-np.inf) < clock.decode[-1] - AHEAD_SECONDS:
            at = first + int(jumps[0])
            clock.decode[at:] = clock.start[at:] = clock.decode[at - 1] + clock.step()


def _is_followed(
    picture: StreamTimeline, sound: StreamTimeline, durations: NDArray[np.float64]
) -> bool:
    """Returns whether the sound ends with the picture by its timestamps rather than by its samples.

    Recordings begin and end both streams together. If a device records a percent too few samples,
    but timestamps come from the clock of the picture, both streams end together by timestamps, and
    the samples must be stretched. If they end together by samples, the timestamps are wrong.
    """
    known = np.flatnonzero(np.isfinite(sound.starts))
    breaks = np.flatnonzero(sound.is_break)
    known = known[known >= (breaks[-1] if len(breaks) else 0)]
    if len(known) < 2 or not len(picture.shown) or not sound.is_trusted:
        return False
    first, last = known[0], known[-1]
    by_timestamps = float(sound.starts[last] + durations[last])
    by_samples = float(sound.starts[first] + durations[first : last + 1].sum())
    end = float(picture.shown[-1])
    return abs(by_timestamps - end) < abs(by_samples - end)


def _has(container: InputContainer, flag: Flags) -> bool:
    value: Any = flag.value  # the type stubs are wrong here
    return bool(container.format.flags & value)


def _clock(table: PacketTable, is_exact: bool) -> Clock:
    """Returns the packets of a stream that are presented."""
    kept = kept_packets(table)
    decode = np.where(np.isfinite(table.dts), table.dts, np.nan if not is_exact else table.pts)
    start = table.pts.copy()
    is_damaged = np.abs(table.dts - table.pts) > MAX_DELAY_SECONDS
    has_right_dts = _follow(table, is_damaged)
    start[has_right_dts] = np.nan
    decode = np.where(is_damaged & ~has_right_dts, table.pts, decode)
    return Clock(
        order=table.order[kept],
        start=start[kept],
        decode=_filled(decode[kept], start[kept]),
        duration=table.duration[kept],
        is_exact=is_exact,
    )


def kept_packets(table: PacketTable) -> NDArray[np.bool_]:
    """Returns which packets are presented, which is all of them if an edit list hides all."""
    kept = ~table.is_discarded
    return kept if kept.any() else np.ones(len(table), np.bool_)


def _order_as_in_file(clocks: Sequence[Clock], positions: Sequence[NDArray[np.int64]]) -> None:
    """Orders packets by position if a clock steps back, as where fragmented files are joined.

    FFmpeg then reads several files of one stream before it continues with the other one.
    """
    steps_back = any((np.diff(clock.decode) < 0).any() for clock in clocks)
    are_sorted = all((at >= 0).all() and (np.diff(at) >= 0).all() for at in positions)
    if steps_back and are_sorted:
        for clock, at in zip(clocks, positions, strict=True):
            clock.order = at


def _follow(table: PacketTable, is_damaged: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns which damaged packets have decoding times that follow those of their neighbors.

    At the end of a joined file, FFmpeg gives the last picture the first presentation time of the
    next file. At the beginning, it guesses a decoding time from the file before.
    """
    sound = np.flatnonzero(~is_damaged & np.isfinite(table.dts))
    damaged = np.flatnonzero(is_damaged)
    follows = np.zeros(len(table), np.bool_)
    if len(sound) and len(damaged):
        beside = np.maximum(np.searchsorted(sound, damaged) - 1, 0)
        distance = np.abs(table.dts[damaged] - table.dts[sound[beside]])
        follows[damaged[distance <= FOLLOWING_SECONDS]] = True
    return follows


def _filled(values: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fills unknown values with the last known one, or the first known one at the start."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        known = np.flatnonzero(np.isfinite(others))
        values = others
    if not len(known):
        return np.zeros(len(values))
    before = np.searchsorted(known, np.arange(len(values)), side="right") - 1
    return values[known[np.maximum(before, 0)]].copy()


def _picture(clock: Clock, is_untimed: bool) -> StreamTimeline:
    starts = clock.start
    num_unknown = int(np.isnan(starts).sum())
    is_by_order = is_untimed or 2 * num_unknown > len(starts)
    if is_by_order:
        slots = np.sort(clock.decode)
        if len(slots) > 1 and slots[0] == slots[-1]:
            slots = slots[:0]  # without any time, frames follow each other at the declared rate
        starts = slots if len(slots) else np.full(len(starts), np.nan)
        shown = slots
    else:
        shown = np.unique(starts[np.isfinite(starts)])
    due = np.maximum.accumulate(clock.decode)
    no_break = np.zeros(len(starts), np.bool_)
    return StreamTimeline(starts, due, no_break, shown, is_by_order, not is_untimed)


def _sound(
    clock: Clock, first_packets: Sequence[int], is_trusted: bool
) -> tuple[StreamTimeline, list[float]]:
    starts = clock.start.copy()
    is_break = np.zeros(len(starts), np.bool_)
    bridged: list[float] = []
    if is_trusted:
        firsts = [0, *(packet for packet in first_packets if packet)]
        for first, stop in zip(firsts, [*firsts[1:], len(starts)], strict=True):
            times = sound_times(starts[first:stop], clock.duration[first:stop])
            starts[first:stop] = times.starts
            is_break[first:stop] = times.is_break
            is_break[first] = first > 0
            bridged += times.bridged
    due = np.maximum.accumulate(clock.decode)
    no_pictures = np.empty(0)
    return StreamTimeline(starts, due, is_break, no_pictures, False, is_trusted), bridged


def _with_hidden(stream: StreamTimeline, table: PacketTable) -> StreamTimeline:
    """Adds the packets that an edit list hides, which are decoded but not presented."""
    if len(stream) == len(table):
        return stream
    kept = np.flatnonzero(~table.is_discarded)
    beside = kept[np.clip(np.searchsorted(kept, np.arange(len(table))), 0, len(kept) - 1)]
    nearest = np.searchsorted(kept, beside)
    starts = (
        table.pts.copy()
    )  # a file with an edit list has no leaps, so these packets share the clock
    starts[kept] = stream.starts
    is_break = np.zeros(len(table), np.bool_)
    is_break[kept] = stream.is_break
    due = np.maximum.accumulate(stream.due[nearest])
    return replace(stream, starts=starts, due=due, is_break=is_break)


def suffix_minima(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the minimum of each value and all values after it."""
    known = np.where(np.isfinite(values), values, np.inf)
    return np.minimum.accumulate(known[::-1])[::-1]

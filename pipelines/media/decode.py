"""A media file becomes frames and sound on one clock, cut into segments.

Its packets are read first (`packets`), which decides when each of them is presented (`timeline`),
then decoded once, from front to back (`tracks`). All of it needs PyAV and NumPy alone, because it
travels inside the registered models. Memory does not grow with the length of a source but for some
80 bytes a packet: a segment leaves as soon as both streams have passed its end.

The clock starts where the picture starts, or earlier by whole frames where the sound does. It ticks
`frame_rate` times a second, and the frame of a tick is the one that a player shows in the middle:

    sound    ======================================......    silence at the end
    picture          A-------B----C---D------------------    on until the next one, or to the end
    clock        |   .   |   .   |   .   |   .   |   .   |   ticks, and their middles
    stored           A       A       C       D       D       before A is on: A, as what comes next
    second       0                                           not where the sound starts, so that
                                                             frames of equal rate are each met once
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import av.container
import av.packet
import numpy as np
from av.audio.stream import AudioStream
from av.error import FFmpegError
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipelines.media.container import (
    DecodeError,
    MediaInfo,
    MediaInput,
    check_codecs,
    check_declared_limits,
    clock_origin,
    describe,
    open_source,
    start_seconds,
)
from pipelines.media.formats import Formats
from pipelines.media.orientation import UPRIGHT
from pipelines.media.picture import WHOLE, PictureConverter, PixelLimitError
from pipelines.media.reader import DuePacket, due_packets, seekable
from pipelines.media.selection import Selection, select_streams
from pipelines.media.timeline import StreamTimeline, Timeline, build_timeline
from pipelines.media.tracks import AudioTrack, VideoTrack
from pipelines.redaction import one_line

__all__ = ["ClockRepairs", "DecodeError", "MediaInfo", "Segment", "decode_segments"]

MAX_START_ERROR_SECONDS = 1.0
"""A stream that begins so far from where it says is believed less than its packets."""


@dataclass(frozen=True)
class ClockRepairs:
    """What was wrong with the timestamps of a segment, and how it was mended."""

    clock_leaps: int = 0
    """Times that the clock restarted or jumped; picture and sound go on together after it."""
    sound_gaps: int = 0
    """Times that sound was missing for 30 ms or more; there is silence."""
    bridged_gaps: int = 0
    """Times that timestamps of the sound were 30 ms off while its samples had no hole."""
    rebased_clocks: int = 0
    """Streams, 0 to 2, whose times are not the container's: after a leap, or made from the order
    of the frames."""


@dataclass
class Segment:
    """A stretch of a source; `frames` or `waveform` is None where the stream has nothing there."""

    start_seconds: float
    duration_seconds: float
    frames: NDArray[np.uint8] | None
    """T H W 3."""
    waveform: NDArray[np.int16] | None
    decode_errors: int
    """Damaged packets and frames met since the segment before."""
    info: MediaInfo
    repairs: ClockRepairs = ClockRepairs()


def decode_segments(
    source: MediaInput,
    *,
    segment_seconds: float,
    min_segment_seconds: float,
    min_source_seconds: float | None = None,
    frame_rate: float,
    short_side: int,
    sample_rate: int,
    max_pixels: int = 8192 * 4320,
    max_seconds: float = 6 * 3600.0,
    max_damaged_fraction: float = 0.25,
    formats: Formats = "common",
) -> Iterator[Segment]:
    """Cuts a source into segments, reading it once from front to back.

    Damage is skipped; what decodes is kept. Segments begin at multiples of their length, rounded
    to whole frames; the last one is as long as the source is.

    Args:
        source: A path, the descriptor of an open file, or a file object.
        segment_seconds: Length of a segment.
        min_segment_seconds: A shorter rest is dropped.
        min_source_seconds: So is a shorter source; by default as a rest.
        frame_rate: Frames a second that are kept.
        short_side: Pixels of the shorter side; smaller sources keep their size.
        sample_rate: Of the sound.
        max_pixels: Of one frame.
        max_seconds: Of the whole source.
        max_damaged_fraction: Share of the frames, of pictures or of sound, that may be damaged.
        formats: Which containers and codecs are decoded.

    Raises:
        DecodeError: If nothing comes out, or a limit is passed; then what came before is not to be
            used.
    """
    try:
        with ExitStack() as cleanup:
            source = seekable(source, cleanup)
            container = cleanup.enter_context(open_source(source, formats))
            selection = select_streams(container, source, formats)
            streams = selection.streams(container)
            check_codecs(*streams, formats)
            check_declared_limits(container, streams[0], max_pixels, max_seconds)
            scan = selection.scan
            timeline = build_timeline(container, scan, selection.video, selection.audio)
            origin = _origin(streams, timeline, frame_rate)
            video = audio = None
            if streams[0] is not None and streams[0].index in timeline.streams:
                converter = PictureConverter(
                    crop=selection.declarations.crops.get(streams[0].index, WHOLE),
                    short_side=short_side,
                    max_pixels=max_pixels,
                )
                times = timeline.streams[streams[0].index]
                video = VideoTrack(streams[0], times, origin, frame_rate, converter)
            if streams[1] is not None and streams[1].index in timeline.streams:
                times = timeline.streams[streams[1].index]
                audio = AudioTrack(streams[1], times, origin, sample_rate)
            if video is None and audio is None:
                cause = one_line(scan.errors[0]) if scan.errors else "the streams hold no frame"
                raise DecodeError("undecodable", cause)
            cutter = _Cutter(container, selection, video, audio, frame_rate, sample_rate)
            cutter.ticks_per_segment = max(1, round(segment_seconds * frame_rate))
            cutter.min_seconds, cutter.max_seconds = min_segment_seconds, max_seconds
            cutter.min_source_seconds = min_source_seconds or min_segment_seconds
            cutter.max_damaged_fraction = max_damaged_fraction
            cutter.heed(timeline, origin)
            packets = due_packets(source, formats, scan, timeline, cleanup)
            yield from cutter.segments(packets)
    except MemoryError as error:
        raise DecodeError("out_of_memory", str(error) or "cannot allocate memory") from error
    except PixelLimitError as error:
        raise DecodeError("too_many_pixels", str(error)) from error


_Streams = tuple[VideoStream | None, AudioStream | None]


def _origin(streams: _Streams, timeline: Timeline, frame_rate: float) -> float:
    starts: list[float | None] = []
    for stream in streams:
        start = start_seconds(stream)
        times = timeline.streams.get(stream.index) if stream else None
        if times is not None:
            start = _true_start(start or 0.0, times)
        elif start is not None:
            start = None  # it says that it begins, and has nothing
        starts.append(start)
    if starts == [None, None]:
        return 0.0
    return clock_origin(starts[0], starts[1], frame_rate)


def _true_start(declared: float, times: StreamTimeline) -> float:
    first = times.shown[0] if len(times.shown) else float(np.nanmin([*times.starts[:64], np.inf]))
    if not np.isfinite(first) or abs(first - declared) <= MAX_START_ERROR_SECONDS:
        return declared
    return float(first)


class _Cutter:
    """Decodes packets as they are due and lets go of each segment as soon as it is whole."""

    ticks_per_segment: int
    min_seconds: float
    min_source_seconds: float
    max_seconds: float
    max_damaged_fraction: float

    def __init__(
        self,
        container: av.container.InputContainer,
        selection: Selection,
        video: VideoTrack | None,
        audio: AudioTrack | None,
        frame_rate: float,
        sample_rate: int,
    ) -> None:
        self._container = container
        self._selection = selection
        self._video = video
        self._audio = audio
        self._tracks = [track for track in (video, audio) if track is not None]
        self._frame_rate = frame_rate
        self._sample_rate = sample_rate
        self._first_tick = 0
        self._seconds_out = 0.0
        self._num_errors = 0
        self._num_damaged: Counter[int] = Counter()
        self._first_error = ""
        self._leaps: list[float] = []
        self._bridged: list[float] = []
        self._has_leapt = False
        self._info: MediaInfo | None = None

    def heed(self, timeline: Timeline, origin: float) -> None:
        """Takes what the packets have shown to be wrong."""
        for error in self._selection.scan.errors:
            self._note(error)
        self._leaps = [time - origin for time in timeline.leaps]
        self._bridged = [time - origin for time in timeline.bridged]

    def segments(self, packets: Iterator[DuePacket]) -> Iterator[Segment]:
        """Gives the segments in order of time."""
        tracks = {track.stream.index: track for track in self._tracks}
        for _, index, number, packet in packets:
            track = tracks[index]
            self._decode(track, packet, number)
            if number == len(track.times) - 1:
                self._finish(track)
            while min(track.known_until for track in self._tracks) >= self._next_end:
                if self._next_end > self._last_end:
                    break
                yield from self._cut(self.ticks_per_segment)
        for track in self._tracks:
            self._finish(track)  # if packets that were scanned could not be read again
        last_tick = round(self._last_end * self._frame_rate)
        while self._first_tick < last_tick:
            yield from self._cut(min(self.ticks_per_segment, last_tick - self._first_tick))
        if not self._seconds_out:
            raise self._nothing()

    def _decode(
        self, track: VideoTrack | AudioTrack, packet: "av.packet.Packet[Any] | None", number: int
    ) -> None:
        try:
            num_damaged = track.decode(packet, number)
        except MemoryError:
            raise
        except (FFmpegError, ValueError) as error:
            self._note(error)
            self._count_damaged(track)
        else:
            self._num_errors += num_damaged
            if num_damaged:
                self._count_damaged(track)

    def _count_damaged(self, track: VideoTrack | AudioTrack) -> None:
        """Gives up a source of whose picture or sound too much is damaged.

        What comes before the first frame is not: a stream that is cut off begins with packets that
        need others before them, and of one that gives nothing, nothing damaged gets into a clip.
        """
        if track.start is None:
            return
        index = track.stream.index
        self._num_damaged[index] += 1
        num_damaged, num_packets = self._num_damaged[index], len(self._selection.scan.tables[index])
        if num_damaged > self.max_damaged_fraction * num_packets:
            what = "picture" if track is self._video else "sound"
            raise DecodeError(
                "damaged",
                f"{num_damaged} or more of {num_packets} packets of the {what}, "
                f"limits.max_damaged_fraction ({self.max_damaged_fraction:g})",
            )

    def _finish(self, track: VideoTrack | AudioTrack) -> None:
        if track.known_until == math.inf:
            return
        self._decode(track, None, len(track.times))
        try:
            track.finish()
        except (FFmpegError, ValueError) as error:
            self._note(error)
            track.known_until = math.inf

    def _note(self, error: Exception) -> None:
        self._num_errors += 1
        self._first_error = self._first_error or one_line(error)

    @property
    def _next_end(self) -> float:
        return (self._first_tick + self.ticks_per_segment) / self._frame_rate

    @property
    def _last_end(self) -> float:
        """Where the source ends, as far as it has been decoded."""
        return max((track.end for track in self._tracks), default=0.0)

    def _cut(self, num_ticks: int) -> Iterator[Segment]:
        """Takes the next segment out of the tracks; a stretch with nothing in it gives none."""
        first, stop = self._first_tick, self._first_tick + num_ticks
        self._first_tick += self.ticks_per_segment
        seconds = num_ticks / self._frame_rate
        if stop / self._frame_rate > self.max_seconds + self.ticks_per_segment / self._frame_rate:
            raise self._too_long()
        if seconds < (self.min_seconds if self._seconds_out else self.min_source_seconds):
            return
        frames = self._video.take(first, num_ticks) if self._video else None
        waveform = None
        if self._audio:
            first_sample = round(first * self._sample_rate / self._frame_rate)
            stop_sample = round(stop * self._sample_rate / self._frame_rate)
            waveform = self._audio.take(first_sample, stop_sample - first_sample)
        repairs = self._repairs(stop / self._frame_rate, frames is not None, waveform is not None)
        if frames is None and waveform is None:
            return
        self._seconds_out += seconds
        if self._seconds_out > self.max_seconds:
            raise self._too_long()
        errors, self._num_errors = self._num_errors, 0
        start = first / self._frame_rate
        yield Segment(start, seconds, frames, waveform, errors, self._describe(), repairs)

    def _too_long(self) -> DecodeError:
        return DecodeError("too_long", f"longer than limits.max_seconds ({self.max_seconds:g})")

    def _repairs(self, end: float, has_picture: bool, has_sound: bool) -> ClockRepairs:
        """Counts what happened before a time and has not been counted."""
        gaps, bridged = [], [self._bridged]
        if self._audio:
            gaps.append(self._audio.gaps)
            bridged.append(self._audio.bridged)
        leaps = _passed([self._leaps], end)
        self._has_leapt |= leaps > 0
        is_made = has_picture and self._video is not None and self._video.times.is_by_order
        both = has_picture + has_sound
        rebased = both if self._has_leapt else int(is_made)
        return ClockRepairs(leaps, _passed(gaps, end), _passed(bridged, end), rebased)

    def _describe(self) -> MediaInfo:
        if self._info is None:
            video = self._video.stream if self._video else None
            audio = self._audio.stream if self._audio else None
            orientation = self._video.orientation if self._video else UPRIGHT
            info = describe(self._container, video, audio, orientation)
            info = replace(
                info,
                declares_picture=self._selection.declares_picture,
                declares_sound=self._selection.declares_sound,
            )
            if self._video and self._audio:
                starts = self._video.start, self._audio.start
                if starts[0] is not None and starts[1] is not None:
                    # Edit lists make it differ from what the container declares.
                    offset = round(starts[1] - starts[0], 6)
                    info = replace(info, stream_offset_seconds=offset)
            self._info = info
        return self._info

    def _nothing(self) -> DecodeError:
        if not any(track.start is not None for track in self._tracks):
            return DecodeError("undecodable", self._first_error or "the streams hold no frame")
        seconds = max(0.0, self._last_end)
        held = self._selection.seconds
        why = f": {self._first_error}" if self._first_error else ""
        if seconds >= self.min_source_seconds:
            return DecodeError("undecodable", f"less than half of its {seconds:.2f} s decodes{why}")
        if self._first_error and held >= self.min_source_seconds:
            return DecodeError("undecodable", f"{seconds:.2f} of its {held:.2f} s decode{why}")
        is_own = self.min_source_seconds != self.min_seconds
        name = "min_source_seconds" if is_own else "min_segment_seconds"
        return DecodeError("too_short", f"{seconds:.2f} s, {name} ({self.min_source_seconds:g})")


def _passed(times: Sequence[list[float]], end: float) -> int:
    """Takes out the times before an end and says how many there were."""
    count = 0
    for of in times:
        rest = [time for time in of if time >= end]
        count += len(of) - len(rest)
        of[:] = rest
    return count

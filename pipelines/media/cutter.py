"""Cuts decoded frames and samples into segments, and rejects sources that hold too little."""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import av.packet
from av.error import FFmpegError

from pipelines.media.audio_track import AudioTrack
from pipelines.media.container import DecodeError, MediaInfo, describe
from pipelines.media.damage import DamageLimit, logged
from pipelines.media.orientation import UPRIGHT
from pipelines.media.reader import DuePacket
from pipelines.media.reasons import ENCRYPTED
from pipelines.media.segments import ClockRepairs, Segment
from pipelines.media.streams.selection import Selection
from pipelines.media.timeline import Timeline
from pipelines.media.video_track import MAX_EARLY_SECONDS, VideoTrack
from pipelines.redaction import one_line

MAX_JOINT_SECONDS = 1.0
"""Packets that the container marks as damaged so close to a leap belong to it."""


class Cutter:
    """Decodes packets as they are due and yields each segment as soon as it is complete."""

    ticks_per_segment: int
    min_seconds: float
    min_source_seconds: float
    max_seconds: float
    damage: DamageLimit

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
        self._first_tick = self._origin_tick = 0
        self._has_begun = audio is not None
        self._seconds_out = 0.0
        self._rest_seconds = 0.0
        self._num_errors = 0
        self._first_error = ""
        self._leaps: list[float] = []
        self._bridged: list[float] = []
        self._picture_gaps: list[float] = []
        self._joints: list[float] = []
        self._has_leapt = False
        self._info: MediaInfo | None = None

    def heed(self, timeline: Timeline, origin: float, *, leaves_out: bool = False) -> None:
        """Records what the packet scan found to be damaged or missing.

        Args:
            timeline: The timeline of the source.
            origin: Its time at which the first segment begins.
            leaves_out: Whether a stream follows another one of its kind, of which one is decoded.
        """
        self._num_errors += leaves_out + self._selection.scan.num_damaged
        for error in self._selection.scan.errors:
            self._note(error)
        if self._video is not None and self._audio is None:
            shown = self._video.times.shown
            # Pictures before the first key picture, with which the clock begins.
            self._num_errors += bool(len(shown) and shown[0] < origin - MAX_EARLY_SECONDS)
        self._leaps = [time - origin for time in timeline.leaps]
        self._bridged = [time - origin for time in timeline.bridged]
        self._picture_gaps = [time - origin for time in timeline.picture_gaps]
        self._joints = timeline.leaps

    def segments(self, packets: Iterator[DuePacket]) -> Generator[Segment, None, float]:
        """Yields the segments in order of time; returns the seconds at the end that are dropped."""
        tracks = {track.stream.index: track for track in self._tracks}
        for _, index, number, packet in packets:
            track = tracks[index]
            self._decode(track, packet, number)
            if number == len(track.times) - 1:
                self._finish(track)
            self._begin()
            while self._has_begun and self._known_until >= self._next_end:
                if self._next_end > self._last_end:
                    break
                yield from self._cut(self.ticks_per_segment)
        for track in self._tracks:
            self._finish(track)  # if packets could not be read a second time
        self._begin()
        last_tick = round(self._last_end * self._frame_rate)
        while self._first_tick < last_tick:
            yield from self._cut(min(self.ticks_per_segment, last_tick - self._first_tick))
        if not self._seconds_out:
            raise self._nothing()
        return self._rest_seconds

    def _begin(self) -> None:
        """Without sound, lets the first segment begin with the first picture that decodes.

        A source that was cut holds pictures before it that depend on others.
        """
        if self._has_begun or self._video is None or self._video.start is None:
            return
        self._has_begun = True
        if self._video.start > MAX_EARLY_SECONDS:
            self._num_errors += 1
            self._first_tick = self._origin_tick = self._video.first_tick

    def _decode(
        self, track: VideoTrack | AudioTrack, packet: "av.packet.Packet[Any] | None", number: int
    ) -> None:
        try:
            with logged(track.stream) as messages:
                num_damaged = track.decode(packet, number)
        except MemoryError:
            raise
        except (FFmpegError, ValueError) as error:
            self._note(error)
            self._count_damaged(track)
            return
        num_damaged = num_damaged or bool(messages)
        if num_damaged:
            self._count_damaged(track)
        elif packet is not None and packet.is_corrupt:
            # The container lost a part of it. Where files were joined, the first one ends so.
            due = track.times.due[number]
            num_damaged = all(abs(due - joint) > MAX_JOINT_SECONDS for joint in self._joints)
        self._num_errors += num_damaged

    def _count_damaged(self, track: VideoTrack | AudioTrack) -> None:
        """Counts damage, and rejects a source whose picture or sound is damaged too much.

        Packets before the first frame do not count. A stream that was cut begins with packets that
        depend on earlier ones, and a stream without any frame puts no damage into a clip.
        """
        if track.start is not None:
            num_packets = len(self._selection.scan.tables[track.stream.index])
            self.damage.add(track.stream, num_packets)

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
    def _known_until(self) -> float:
        return min(track.known_until for track in self._tracks)

    @property
    def _next_end(self) -> float:
        return (self._first_tick + self.ticks_per_segment) / self._frame_rate

    @property
    def _last_end(self) -> float:
        """Returns the end of what has been decoded."""
        return max((track.end for track in self._tracks), default=0.0)

    def _cut(self, num_ticks: int) -> Iterator[Segment]:
        """Takes the next segment from the tracks; None if it is empty."""
        most, num_ticks = num_ticks, self._until_picture(num_ticks)
        first, stop = self._first_tick, self._first_tick + num_ticks
        self._first_tick = stop
        seconds = num_ticks / self._frame_rate
        if stop / self._frame_rate > self.max_seconds + self.ticks_per_segment / self._frame_rate:
            raise self._too_long()
        if seconds < (self.min_seconds if self._seconds_out else self.min_source_seconds):
            is_before_picture = num_ticks < most
            self._num_errors += is_before_picture
            self._rest_seconds = 0.0 if is_before_picture else seconds
            return
        frames = self._video.take(first, num_ticks) if self._video else None
        waveform = None
        if self._audio:
            first_sample = round(first * self._sample_rate / self._frame_rate)
            stop_sample = round(stop * self._sample_rate / self._frame_rate)
            waveform = self._audio.take(first_sample, stop_sample - first_sample)
        repairs = self._repairs(stop / self._frame_rate, frames is not None, waveform is not None)
        if frames is None and waveform is None:
            self._num_errors += 1  # a stretch before the first picture; the next segment says so
            return
        self._seconds_out += seconds
        if self._seconds_out > self.max_seconds:
            raise self._too_long()
        errors, self._num_errors = self._num_errors, 0
        start = (first - self._origin_tick) / self._frame_rate
        yield Segment(start, seconds, frames, waveform, errors, self._describe(), repairs)

    def _until_picture(self, num_ticks: int) -> int:
        """Returns the length of a segment that ends where a late picture begins.

        So a recording that was cut between two key pictures loses no picture:

            sound       ----------------------------
            picture          =======================
            segments    |    |           |
        """
        if self._video is None or self._video.start is None:
            return num_ticks
        late = self._video.first_tick - self._first_tick
        least = self._frame_rate * max(self.min_seconds, self.min_source_seconds)
        is_late = late > MAX_EARLY_SECONDS * self._frame_rate
        return late if is_late and num_ticks - late >= least else num_ticks

    def _too_long(self) -> DecodeError:
        return DecodeError("too_long", f"longer than limits.max_seconds ({self.max_seconds:g})")

    def _repairs(self, end: float, has_picture: bool, has_sound: bool) -> ClockRepairs:
        """Counts the corrections before a time that were not counted yet."""
        gaps, bridged = [], [self._bridged]
        if self._audio:
            gaps.append(self._audio.gaps)
            bridged.append(self._audio.bridged)
        leaps = _passed([self._leaps], end)
        self._has_leapt |= leaps > 0
        is_made = has_picture and self._video is not None and self._video.times.is_by_order
        both = has_picture + has_sound
        rebased = both if self._has_leapt else int(is_made)
        is_held = has_picture and self._video is not None and self._video.is_held_at(end)
        return ClockRepairs(
            clock_leaps=leaps,
            sound_gaps=_passed(gaps, end),
            bridged_gaps=_passed(bridged, end),
            rebased_clocks=rebased,
            held_picture=int(is_held),
            picture_gaps=_passed([self._picture_gaps], end),
        )

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
                video_codec=self._codec("video", info.video_codec),
                audio_codec=self._codec("audio", info.audio_codec),
            )
            if self._video and self._audio:
                starts = self._video.start, self._audio.start
                if starts[0] is not None and starts[1] is not None:
                    # Because of edit lists, it may differ from the declared start.
                    offset = round(starts[1] - starts[0], 6)
                    info = replace(info, stream_offset_seconds=offset)
            self._info = info
        return self._info

    def _codec(self, kind: str, decoded: str | None) -> str | None:
        """Returns the codec that is decoded, or that the stream is encrypted."""
        return decoded or (ENCRYPTED if kind in self._selection.encrypted else None)

    def _nothing(self) -> DecodeError:
        if not any(track.start is not None for track in self._tracks):
            return DecodeError("undecodable", self._first_error or "the streams hold no frame")
        seconds = max(0.0, self._last_end - self._origin_tick / self._frame_rate)
        held = max(seconds, self._selection.seconds)
        num_damaged = self._selection.scan.num_damaged
        cause = self._first_error or (num_damaged and f"damaged parts of the file: {num_damaged}")
        why = f": {cause}" if cause else ""
        if seconds >= self.min_source_seconds:
            return DecodeError("undecodable", f"less than half of its {seconds:.2f} s decodes{why}")
        if num_damaged or (self._first_error and held >= self.min_source_seconds):
            return DecodeError("undecodable", f"{seconds:.2f} of its {held:.2f} s decode{why}")
        is_own = self.min_source_seconds != self.min_seconds
        name = "min_source_seconds" if is_own else "min_segment_seconds"
        return DecodeError("too_short", f"{seconds:.2f} s, {name} ({self.min_source_seconds:g})")


def _passed(times: Sequence[list[float]], end: float) -> int:
    """Removes the times before an end and returns their number."""
    count = 0
    for of in times:
        rest = [time for time in of if time >= end]
        count += len(of) - len(rest)
        of[:] = rest
    return count

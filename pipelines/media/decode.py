"""One pass over a media file: frames and sound on one clock, cut into segments.

With `media_source` and `media_tracks` the only code that decodes. They need PyAV and NumPy alone,
because they travel inside the registered models. Memory does not grow with the length of a source:
a segment leaves as soon as both streams have passed its end, or one of them is
`MAX_AHEAD_SECONDS` past it.

The clock is the presentation timestamps of the container. It starts where the picture starts, or
earlier by whole frames where the sound does. It ticks `frame_rate` times a second, and the frame
of a tick is the one that a player shows in the middle of it.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import av
import av.container
import av.packet
import numpy as np
from av.error import FFmpegError
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
from pipelines.media.packets import read_packets
from pipelines.media.picture import WHOLE, PictureConverter, PixelLimitError
from pipelines.media.selection import Selection, select_streams
from pipelines.media.tracks import AudioTrack, VideoTrack
from pipelines.redaction import one_line

__all__ = ["DecodeError", "MediaInfo", "Segment", "decode_segments"]

MAX_AHEAD_SECONDS = 10.0
"""How far one stream may be behind the other in the file before it counts as missing."""


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
        source: A path, the descriptor of an open file, or a file object that can seek.
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
        with ExitStack() as stack:
            container = stack.enter_context(open_source(source, formats))
            selection = select_streams(container, source, formats)
            video_stream, audio_stream = selection.streams(container)
            check_codecs(video_stream, audio_stream, formats)
            check_declared_limits(container, video_stream, max_pixels, max_seconds)
            starts = start_seconds(video_stream), start_seconds(audio_stream)
            if selection.scan.held is None:
                container = stack.enter_context(open_source(source, formats))
                video_stream, audio_stream = selection.streams(container)
            origin = clock_origin(*starts, frame_rate)
            video = audio = None
            if video_stream is not None:
                converter = PictureConverter(
                    crop=selection.declarations.crops.get(video_stream.index, WHOLE),
                    short_side=short_side,
                    max_pixels=max_pixels,
                )
                video = VideoTrack(video_stream, origin, frame_rate, converter)
            if audio_stream is not None:
                audio = AudioTrack(audio_stream, origin, sample_rate)
            cutter = _Cutter(container, selection, video, audio, frame_rate, sample_rate)
            cutter.ticks_per_segment = max(1, round(segment_seconds * frame_rate))
            cutter.min_seconds, cutter.max_seconds = min_segment_seconds, max_seconds
            cutter.min_source_seconds = min_source_seconds or min_segment_seconds
            cutter.max_damaged_fraction = max_damaged_fraction
            yield from cutter.segments()
    except MemoryError as error:
        raise DecodeError("out_of_memory", str(error) or "cannot allocate memory") from error
    except PixelLimitError as error:
        raise DecodeError("too_many_pixels", str(error)) from error


class _Cutter:
    """Reads packets in file order and lets go of each segment as soon as it is whole."""

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
        self._info: MediaInfo | None = None

    def segments(self) -> Iterator[Segment]:
        """Gives the segments in order of time."""
        tracks = {track.stream.index: track for track in self._tracks}
        for packet in self._packets():
            track = tracks[packet.stream_index]
            self._decode(track, packet)
            while track.position >= self._next_end and self._is_whole():
                yield from self._cut(self.ticks_per_segment)
                self._skip_gap()
        for track in self._tracks:
            self._decode(track, None)
            self._finish(track)
        last_tick = round(max(track.position for track in self._tracks) * self._frame_rate)
        while self._first_tick < last_tick:
            yield from self._cut(min(self.ticks_per_segment, last_tick - self._first_tick))
            self._skip_gap()
        if not self._seconds_out:
            raise self._nothing()

    def _packets(self) -> Iterator["av.packet.Packet[Any]"]:
        scan = self._selection.scan
        streams = [track.stream for track in self._tracks]
        if scan.held is not None:
            indices = {stream.index for stream in streams}
            errors = scan.errors
            yield from (packet for packet in scan.held if packet.stream_index in indices)
        else:
            errors = []
            yield from read_packets(self._container, streams, errors)
        for error in errors:
            self._note(error)

    def _decode(
        self, track: VideoTrack | AudioTrack, packet: "av.packet.Packet[Any] | None"
    ) -> None:
        try:
            num_damaged = track.decode(packet)
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
        try:
            track.finish()
        except (FFmpegError, ValueError) as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        self._num_errors += 1
        self._first_error = self._first_error or one_line(error)

    def _is_whole(self) -> bool:
        positions = [track.position for track in self._tracks]
        return min(positions) >= self._next_end or (
            max(positions) >= self._next_end + MAX_AHEAD_SECONDS
        )

    @property
    def _next_end(self) -> float:
        return (self._first_tick + self.ticks_per_segment) / self._frame_rate

    def _cut(self, num_ticks: int) -> Iterator[Segment]:
        """Takes the next segment out of the tracks; a stretch with nothing in it gives none."""
        first, stop = self._first_tick, self._first_tick + num_ticks
        self._first_tick += self.ticks_per_segment
        seconds = num_ticks / self._frame_rate
        if seconds < (self.min_seconds if self._seconds_out else self.min_source_seconds):
            return
        frames = self._video.take(first, num_ticks) if self._video else None
        waveform = None
        if self._audio:
            first_sample = round(first * self._sample_rate / self._frame_rate)
            stop_sample = round(stop * self._sample_rate / self._frame_rate)
            waveform = self._audio.take(first_sample, stop_sample - first_sample)
        if frames is None and waveform is None:
            return
        self._seconds_out += seconds
        if self._seconds_out > self.max_seconds:
            raise DecodeError("too_long", f"longer than limits.max_seconds ({self.max_seconds:g})")
        errors, self._num_errors = self._num_errors, 0
        start = first / self._frame_rate
        yield Segment(start, seconds, frames, waveform, errors, self._describe())

    def _skip_gap(self) -> None:
        """Goes on where there is something again, if timestamps have leapt."""
        ahead = max(track.position for track in self._tracks) - MAX_AHEAD_SECONDS
        tick = int(ahead * self._frame_rate)
        if self._video and self._video.frames:
            tick = min(tick, self._video.frames[0][0])
        if self._audio and self._audio.runs:
            tick = min(tick, int(self._audio.runs[0][0] * self._frame_rate / self._sample_rate))
        if tick > self._first_tick:
            self._first_tick = tick // self.ticks_per_segment * self.ticks_per_segment

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
        seconds = max(0.0, *(track.position for track in self._tracks))
        held = self._selection.seconds
        why = f": {self._first_error}" if self._first_error else ""
        if seconds >= self.min_source_seconds:
            return DecodeError("undecodable", f"less than half of its {seconds:.2f} s decodes{why}")
        if self._first_error and held >= self.min_source_seconds:
            return DecodeError("undecodable", f"{seconds:.2f} of its {held:.2f} s decode{why}")
        is_own = self.min_source_seconds != self.min_seconds
        name = "min_source_seconds" if is_own else "min_segment_seconds"
        return DecodeError("too_short", f"{seconds:.2f} s, {name} ({self.min_source_seconds:g})")

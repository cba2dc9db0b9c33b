"""One pass over a media file: frames and sound on one clock, cut into segments.

The only module that decodes. It needs PyAV and NumPy alone, because it travels inside the
registered models. Memory does not grow with the length of a source: a segment leaves as soon as
both streams have passed its end, or one of them is `MAX_AHEAD_SECONDS` past it.

The clock is the presentation timestamps of the container. It starts where the picture starts, or
earlier by whole frames where the sound does. It ticks `frame_rate` times a second, and the frame
of a tick is the one that a player shows in the middle of it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import av
import av.container
import av.packet
import av.stream
import numpy as np
from av.audio.stream import AudioStream
from av.error import FFmpegError
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipelines.media_tracks import AudioTrack, PixelLimitError, VideoTrack, native_rate

MAX_AHEAD_SECONDS = 10.0
"""How far one stream may be behind the other in the file before it counts as missing."""

REASONS = {
    "unreadable": "the file cannot be opened or read",
    "empty_file": "the file has no bytes",
    "too_large": "the file is larger than limits.max_bytes",
    "duplicate": "another source has the same bytes",
    "not_media": "no demuxer of FFmpeg opens it",
    "no_streams": "there is neither a picture nor a sound stream with a known decoder",
    "undecodable": "no frame and no sound could be decoded",
    "too_short": "it is shorter than min_segment_seconds",
    "too_long": "it is longer than limits.max_seconds",
    "too_many_pixels": "a frame is larger than limits.max_pixels",
    "decoder_crashed": "the process that decoded it died",
    "decoder_timeout": "nothing came out of the decoder for limits.max_decode_seconds",
    "out_of_memory": "decoding needs more than limits.max_memory_bytes",
}
"""Why a source can be rejected."""

Source = str | BinaryIO


class DecodeError(Exception):
    """A source that gives no segments; `reason` is one of `REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class MediaInfo:
    """What the container says about a source, and the first frame."""

    container: str
    video_codec: str | None
    audio_codec: str | None
    native_width: int
    native_height: int
    native_rate: float
    """Frames per second as declared, 0 if unknown."""
    rotation: int
    """Degrees counterclockwise by which frames were turned; stored frames are upright."""
    stream_offset_seconds: float
    """Start of the sound minus start of the picture."""
    duration_seconds: float
    """As declared, 0 if unknown."""


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


def probe(source: Source) -> MediaInfo:
    """Reads what a source says about itself without decoding it."""
    with _open(source) as container:
        streams = _choose_streams(container)
        return _describe(container, *streams, rotation=0)


def decode_segments(
    source: Source,
    *,
    segment_seconds: float,
    min_segment_seconds: float,
    frame_rate: float,
    short_side: int,
    sample_rate: int,
    max_pixels: int = 8192 * 4320,
    max_seconds: float = 6 * 3600.0,
) -> Iterator[Segment]:
    """Cuts a source into segments, reading it once from front to back.

    Damage is skipped; what decodes is kept. Segments begin at multiples of their length, rounded
    to whole frames; the last one is as long as the source is.

    Args:
        source: A path, or a file object that can seek.
        segment_seconds: Length of a segment.
        min_segment_seconds: A shorter rest is dropped.
        frame_rate: Frames a second that are kept.
        short_side: Pixels of the shorter side; smaller sources keep their size.
        sample_rate: Of the sound.
        max_pixels: Of one frame.
        max_seconds: Of the whole source.

    Raises:
        DecodeError: If nothing comes out, or a limit is passed; then what came before is not to be
            used.
    """
    try:
        with _open(source) as container:
            video_stream, audio_stream = _choose_streams(container)
            _check_claims(container, video_stream, max_pixels, max_seconds)
            starts = _start_seconds(video_stream), _start_seconds(audio_stream)
            origin = _origin(*starts, frame_rate)
            video = audio = None
            if video_stream is not None:
                video = VideoTrack(video_stream, origin, frame_rate, short_side, max_pixels)
            if audio_stream is not None:
                audio = AudioTrack(audio_stream, origin, sample_rate)
            cutter = _Cutter(container, video, audio, frame_rate, sample_rate)
            cutter.ticks_per_segment = max(1, round(segment_seconds * frame_rate))
            cutter.min_seconds, cutter.max_seconds = min_segment_seconds, max_seconds
            yield from cutter.segments()
    except MemoryError as error:
        raise DecodeError("out_of_memory", str(error) or "cannot allocate memory") from error
    except PixelLimitError as error:
        raise DecodeError("too_many_pixels", str(error)) from error


class _Cutter:
    """Reads packets in file order and lets go of each segment as soon as it is whole."""

    ticks_per_segment: int
    min_seconds: float
    max_seconds: float

    def __init__(
        self,
        container: av.container.InputContainer,
        video: VideoTrack | None,
        audio: AudioTrack | None,
        frame_rate: float,
        sample_rate: int,
    ) -> None:
        self._container = container
        self._video = video
        self._audio = audio
        self._tracks = [track for track in (video, audio) if track is not None]
        self._frame_rate = frame_rate
        self._sample_rate = sample_rate
        self._first_tick = 0
        self._seconds_out = 0.0
        self._num_errors = 0
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
        try:
            for packet in self._container.demux([track.stream for track in self._tracks]):
                if packet.size:
                    yield packet
        except FFmpegError as error:
            # What was read before the damage is good.
            self._note(error)

    def _decode(
        self, track: VideoTrack | AudioTrack, packet: "av.packet.Packet[Any] | None"
    ) -> None:
        try:
            self._num_errors += track.decode(packet)
        except MemoryError:
            raise
        except (FFmpegError, ValueError) as error:
            self._note(error)

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
        if seconds < self.min_seconds:
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
            rotation = self._video.rotation if self._video else 0
            info = _describe(self._container, video, audio, rotation)
            if self._video and self._audio:
                starts = self._video.start, self._audio.start
                if starts[0] is not None and starts[1] is not None:
                    # Edit lists make it differ from what the container declares.
                    offset = round(starts[1] - starts[0], 6)
                    info = replace(info, stream_offset_seconds=offset)
            self._info = info
        return self._info

    def _nothing(self) -> DecodeError:
        if any(track.start is not None for track in self._tracks):
            seconds = max(0.0, *(track.position for track in self._tracks))
            return DecodeError(
                "too_short", f"{seconds:.2f} s, min_segment_seconds ({self.min_seconds:g})"
            )
        return DecodeError("undecodable", self._first_error or "the streams hold no frame")


def _open(source: Source) -> av.container.InputContainer:
    av.logging.set_level(av.logging.PANIC)
    # A `file:` name cannot be taken for a protocol or a pattern, and what a playlist names on the
    # network is not fetched.
    options = {"protocol_whitelist": "file,crypto,data", "pattern_type": "none"}
    name: Any = source
    if isinstance(source, str):
        try:
            name = "file:" + os.path.abspath(source)
            name.encode()
        except UnicodeEncodeError:
            name = open(source, "rb")  # noqa: SIM115 - closed with the container's last reference
    else:
        options = {}
    try:
        return av.open(name, "r", options=options, metadata_errors="replace")
    except MemoryError:
        raise
    except (PermissionError, FileNotFoundError, IsADirectoryError) as error:
        raise DecodeError("unreadable", one_line(error)) from error
    except (FFmpegError, ValueError, OSError) as error:
        raise DecodeError("not_media", one_line(error)) from error


def one_line(error: BaseException) -> str:
    """Says an error in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:300]


def _choose_streams(
    container: av.container.InputContainer,
) -> tuple[VideoStream | None, AudioStream | None]:
    """Takes a picture and a sound stream: one that has begun, marked as default, the first."""

    def usable(stream: av.stream.Stream) -> bool:
        still = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
        # Without a decoder there is no codec context, whatever the type stubs say.
        return bool(stream.codec_context) and not stream.disposition & still

    def rank(stream: av.stream.Stream) -> tuple[bool, bool]:
        default = stream.disposition & av.stream.Disposition.default
        return stream.start_time is not None, bool(default)

    videos = sorted(filter(usable, container.streams.video), key=rank, reverse=True)
    audios = sorted(filter(usable, container.streams.audio), key=rank, reverse=True)
    video, audio = next(iter(videos), None), next(iter(audios), None)
    if video is None and audio is None:
        kinds = sorted({stream.type for stream in container.streams})
        raise DecodeError("no_streams", f"streams: {', '.join(kinds) or 'none'}")
    for stream in container.streams:
        if stream not in (video, audio):
            stream.discard = av.stream.Discard.all
    return video, audio


def _start_seconds(stream: VideoStream | AudioStream | None) -> float | None:
    if stream is None:
        return None
    if stream.start_time is None or stream.time_base is None:
        return 0.0
    return float(stream.start_time * stream.time_base)


def _origin(video_start: float | None, audio_start: float | None, frame_rate: float) -> float:
    """Where the clock starts: the frames' own raster, so that equal rates pick each frame once."""
    if video_start is None:
        assert audio_start is not None
        return audio_start
    if audio_start is None or audio_start >= video_start:
        return video_start
    return video_start - int((video_start - audio_start) * frame_rate) / frame_rate


def _check_claims(
    container: av.container.InputContainer,
    video: VideoStream | None,
    max_pixels: int,
    max_seconds: float,
) -> None:
    if video is not None and video.codec_context.width * video.codec_context.height > max_pixels:
        size = f"{video.codec_context.width} x {video.codec_context.height}"
        raise DecodeError("too_many_pixels", f"frames of {size}, limits.max_pixels ({max_pixels})")
    seconds = (container.duration or 0) / av.time_base
    # Below a thousand bytes a second the header lies; then the length is what decodes.
    if seconds > max_seconds and container.size > 1000 * seconds:
        raise DecodeError("too_long", f"{seconds:.0f} s, limits.max_seconds ({max_seconds:g})")


def _describe(
    container: av.container.InputContainer,
    video: VideoStream | None,
    audio: AudioStream | None,
    rotation: int,
) -> MediaInfo:
    starts = _start_seconds(video), _start_seconds(audio)
    offset = 0.0 if starts[0] is None or starts[1] is None else starts[1] - starts[0]
    return MediaInfo(
        container=container.format.name,
        video_codec=video.codec_context.name if video else None,
        audio_codec=audio.codec_context.name if audio else None,
        native_width=video.codec_context.width if video else 0,
        native_height=video.codec_context.height if video else 0,
        native_rate=native_rate(video) if video else 0.0,
        rotation=rotation,
        stream_offset_seconds=offset,
        duration_seconds=max(0.0, (container.duration or 0) / av.time_base),
    )

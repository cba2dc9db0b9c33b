"""Opening a media file: what it says about itself, and why it can be refused.

Everything here is said by the file, so nothing of it is believed beyond what it costs to check.
"""

import os
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import av.container
import av.stream
from av.audio.stream import AudioStream
from av.error import FFmpegError
from av.video.stream import VideoStream

from pipelines.media.orientation import UPRIGHT, Orientation
from pipelines.media.tracks import ROUNDING_TICKS, native_rate
from pipelines.redaction import one_line

PLAYLISTS = frozenset({"hls", "dash", "concat", "imf", "webm_dash_manifest", "sdp", "vobsub"})
"""Formats of FFmpeg in which a file names other files, itself among them."""
NO_FILES = frozenset({"image2", "lavfi", "rtsp", "rtp", "alsa", "oss", "fbdev", "video4linux2"})
"""Formats in which a name means something else than a file."""

MediaInput = str | BinaryIO
"""A path, or a file object that can seek."""


class DecodeError(Exception):
    """A source that gives no segments; `reason` is one of `reasons.REASONS`."""

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
    is_mirrored: bool
    """Whether left and right were exchanged before that."""
    stream_offset_seconds: float
    """Start of the sound minus start of the picture."""
    duration_seconds: float
    """As declared, 0 if unknown."""


def probe(source: MediaInput) -> MediaInfo:
    """Reads what a source says about itself without decoding it."""
    with open_source(source) as container:
        streams = choose_streams(container)
        return describe(container, *streams, UPRIGHT)


def open_source(source: MediaInput) -> av.container.InputContainer:
    """Opens a path or a file object, and nothing that it might refer to.

    Raises:
        DecodeError: If it cannot be opened.
    """
    av.logging.set_level(av.logging.PANIC)
    # A `file:` name cannot be taken for a protocol or a pattern.
    options = {
        "format_whitelist": ",".join(sorted(av.formats_available - PLAYLISTS - NO_FILES)),
        "protocol_whitelist": "file,crypto,data",
    }
    name: Any = source
    if isinstance(source, str):
        try:
            name = "file:" + os.path.abspath(source)
            name.encode()
        except UnicodeEncodeError:
            name = open(source, "rb")  # noqa: SIM115 - closed with the container's last reference
    try:
        return av.open(name, "r", options=options, metadata_errors="replace")
    except MemoryError:
        raise
    except (PermissionError, FileNotFoundError, IsADirectoryError) as error:
        raise DecodeError("unreadable", one_line(error)) from error
    except (FFmpegError, ValueError, OSError) as error:
        raise DecodeError("not_media", one_line(error)) from error


def choose_streams(
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


def start_seconds(stream: VideoStream | AudioStream | None) -> float | None:
    """When a stream begins, as it says itself; None without a stream."""
    if stream is None:
        return None
    if stream.start_time is None or stream.time_base is None:
        return 0.0
    return float(stream.start_time * stream.time_base)


def clock_origin(video_start: float | None, audio_start: float | None, frame_rate: float) -> float:
    """Where the clock starts: the frames' own raster, so that equal rates pick each frame once."""
    if video_start is None:
        assert audio_start is not None
        return audio_start
    if audio_start is None or audio_start >= video_start:
        return video_start
    ticks = (video_start - audio_start) * frame_rate
    return video_start - int(ticks + ROUNDING_TICKS) / frame_rate


def check_declared_limits(
    container: av.container.InputContainer,
    video: VideoStream | None,
    max_pixels: int,
    max_seconds: float,
) -> None:
    """Refuses what says itself that it is too large or too long.

    Raises:
        DecodeError: If it is.
    """
    if video is not None and video.codec_context.width * video.codec_context.height > max_pixels:
        size = f"{video.codec_context.width} x {video.codec_context.height}"
        raise DecodeError("too_many_pixels", f"frames of {size}, limits.max_pixels ({max_pixels})")
    seconds = (container.duration or 0) / av.time_base
    # Below a thousand bytes a second the header lies; then the length is what decodes.
    if seconds > max_seconds and container.size > 1000 * seconds:
        raise DecodeError("too_long", f"{seconds:.0f} s, limits.max_seconds ({max_seconds:g})")


def describe(
    container: av.container.InputContainer,
    video: VideoStream | None,
    audio: AudioStream | None,
    orientation: Orientation,
) -> MediaInfo:
    """Collects what the container says about the streams chosen."""
    starts = start_seconds(video), start_seconds(audio)
    offset = 0.0 if starts[0] is None or starts[1] is None else starts[1] - starts[0]
    return MediaInfo(
        container=container.format.name,
        video_codec=video.codec_context.name if video else None,
        audio_codec=audio.codec_context.name if audio else None,
        native_width=video.codec_context.width if video else 0,
        native_height=video.codec_context.height if video else 0,
        native_rate=native_rate(video) if video else 0.0,
        rotation=orientation.rotation,
        is_mirrored=orientation.is_mirrored,
        stream_offset_seconds=offset,
        duration_seconds=max(0.0, (container.duration or 0) / av.time_base),
    )

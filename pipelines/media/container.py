"""Opens media files, reads what they declare, and refuses some.

A file may declare anything. A declaration is only used to refuse a file early or as a hint that
decoding verifies.
"""

import io
import os
import stat
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import av.container
import av.stream
from av.audio.stream import AudioStream
from av.error import ArgumentError, FFmpegError
from av.video.stream import VideoStream

from pipelines.media.file_view import OwnedFile, View
from pipelines.media.formats import (
    NEVER,
    Formats,
    codec_of,
    container_whitelist,
    decoder_whitelist,
    is_common,
)
from pipelines.media.orientation import Orientation
from pipelines.media.streams.encryption import PROBED_BYTES, is_scrambled
from pipelines.media.video_track import ROUNDING_TICKS, native_rate
from pipelines.redaction import one_line

MediaInput = str | int | BinaryIO
"""A path, a descriptor of an open file, or a seekable file object."""


class DecodeError(Exception):
    """Raised for a source that gives no segments; `reason` is a key of `reasons.REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class MediaInfo:
    """What the container declares about a source, and how its first frame is shown."""

    container: str
    video_codec: str | None
    audio_codec: str | None
    native_width: int
    native_height: int
    native_rate: float
    """Declared frames per second; 0 if unknown."""
    rotation: int
    """Degrees counterclockwise by which frames were rotated to store them upright."""
    is_mirrored: bool
    """Whether frames were mirrored before the rotation."""
    declares_picture: bool
    """Whether there is a picture stream, decoded or not. Cover art does not count."""
    declares_sound: bool
    stream_offset_seconds: float
    """Start of the sound minus start of the picture."""
    duration_seconds: float
    """Declared; 0 if unknown."""


PROBED_ALL_BYTES = 64_000_000
"""Bytes to search for streams that begin late; FFmpeg holds the packets in memory meanwhile."""
_PROBES_ALL = {"probesize": str(PROBED_ALL_BYTES), "analyzeduration": str(3600 * av.time_base)}

# Metadata that is not UTF-8 must not fail a file; PyAV 19 handles it by itself.
_METADATA: dict[str, Any] = (
    {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
)


def open_file(path: str) -> int:
    """Opens a regular file for reading. Nothing else opens a source by its name.

    Raises:
        DecodeError: If it cannot be opened, or is a folder, pipe or device.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    try:
        file = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise DecodeError("unreadable", one_line(error)) from error
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise DecodeError("unreadable", "not a regular file")


def open_source(
    source: MediaInput, formats: Formats = "common", *, probes_all: bool = False
) -> av.container.InputContainer:
    """Opens a source, but no other file that it refers to.

    FFmpeg gets bytes without a name, so that the format follows from the content alone. It does
    not get the descriptor: it would query its size by a system call that also takes names.

    Args:
        source: A path, a file object, or a descriptor, which stays open.
        formats: Which containers and codecs are allowed.
        probes_all: Whether to look for streams in the first `PROBED_ALL_BYTES`, instead of 5 MB.

    Raises:
        DecodeError: If it cannot be opened, or is in a container that is not allowed.
    """
    file: BinaryIO | io.RawIOBase
    if isinstance(source, str):
        file = OwnedFile(open_file(source))
    else:
        file = View(source) if isinstance(source, int) else source
    av.logging.set_level(av.logging.PANIC)
    try:
        return _opened(file, formats, _PROBES_ALL if probes_all else {})
    except MemoryError:
        raise
    except ArgumentError as error:  # FFmpeg's error for a format that is not on the list
        raise _refusal(file, formats, error) from error
    except (FFmpegError, ValueError, OSError) as error:
        check_scrambled(source)
        raise DecodeError("not_media", one_line(error)) from error


def check_scrambled(source: MediaInput) -> None:
    """Refuses a transport stream of which FFmpeg cannot read anything because it is scrambled.

    Raises:
        DecodeError: If it is.
    """
    if is_scrambled(read_beginning(source, PROBED_BYTES)):
        raise DecodeError("encrypted", "its transport stream is scrambled")


def _opened(
    source: BinaryIO | io.RawIOBase, formats: Formats, options: Mapping[str, str]
) -> av.container.InputContainer:
    options = {
        **options,
        "format_whitelist": container_whitelist(formats),
        "protocol_whitelist": "none",
    }
    if formats == "common":
        options["codec_whitelist"] = decoder_whitelist()
    source.seek(0)
    file: Any = source
    return av.open(file, "r", options=options, **_METADATA)


def _refusal(
    source: BinaryIO | io.RawIOBase, formats: Formats, error: ArgumentError
) -> DecodeError:
    """Names the format of a refused source, which only FFmpeg's log tells."""
    before = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as log:
            _opened(source, formats, {}).close()
    except (FFmpegError, ValueError, OSError):
        pass
    finally:
        av.logging.set_level(before)
    for _, name, message in log:
        if message.startswith("Format not on whitelist"):
            if formats == "all" or not NEVER.isdisjoint(name.split(",")):
                return DecodeError("not_media", f"{name} is not a format of media files")
            return not_allowed(f"{name} files are")
    return DecodeError("not_media", one_line(error))


def read_beginning(source: MediaInput, num_bytes: int) -> bytes:
    """Reads the first bytes of a source."""
    if isinstance(source, int):
        return os.pread(source, num_bytes, 0)
    if isinstance(source, str):
        file = open_file(source)
        try:
            return os.pread(file, num_bytes, 0)
        finally:
            os.close(file)
    source.seek(0)
    return source.read(num_bytes)


def view_of(source: MediaInput, cleanup: ExitStack) -> View:
    """Returns a source as a file with a position of its own; `cleanup` closes what this opens."""
    if not isinstance(source, str):
        return View(source)
    return cleanup.enter_context(OwnedFile(open_file(source)))


def not_allowed(what: str) -> DecodeError:
    """Returns the message that refuses an uncommon container or codec, with the remedy."""
    return DecodeError(
        "format_not_allowed",
        f"{what} not among the common formats; limits.formats=all decodes whatever FFmpeg does",
    )


def check_codecs(video: VideoStream | None, audio: AudioStream | None, formats: Formats) -> None:
    """Refuses a source whose picture or sound is in a codec that is not allowed.

    Raises:
        DecodeError: If one is not. Dropping a stream instead would silently change the source.
    """
    for stream, kind in ((video, "the picture's"), (audio, "the sound's")):
        if stream is not None and formats == "common" and not is_common(stream):
            raise not_allowed(f"{kind} codec {codec_of(stream)} is")


def start_seconds(stream: VideoStream | AudioStream | None) -> float | None:
    """Returns when a stream declares to begin; None without a stream."""
    if stream is None:
        return None
    if stream.start_time is None or stream.time_base is None:
        return 0.0
    return float(stream.start_time * stream.time_base)


def clock_origin(video_start: float | None, audio_start: float | None, frame_rate: float) -> float:
    """Returns the start of the clock, aligned with frames: equal rates pick each one once."""
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
    """Refuses a source that declares to be too large or too long.

    Raises:
        DecodeError: If it does.
    """
    if video is not None and video.codec_context.width * video.codec_context.height > max_pixels:
        size = f"{video.codec_context.width} x {video.codec_context.height}"
        raise DecodeError("too_many_pixels", f"frames of {size}, limits.max_pixels ({max_pixels})")
    seconds = (container.duration or 0) / av.time_base
    # Below a thousand bytes a second, the header is wrong; decoding then measures the length.
    if seconds > max_seconds and (container.size or 0) > 1000 * seconds:
        raise DecodeError("too_long", f"{seconds:.0f} s, limits.max_seconds ({max_seconds:g})")


def describe(
    container: av.container.InputContainer,
    video: VideoStream | None,
    audio: AudioStream | None,
    orientation: Orientation,
) -> MediaInfo:
    """Collects what the container declares about the chosen streams."""
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
        declares_picture=video is not None,
        declares_sound=audio is not None,
        stream_offset_seconds=offset,
        duration_seconds=max(0.0, (container.duration or 0) / av.time_base),
    )

"""Decodes a media file into segments of frames and sound on one clock.

A first pass reads the packets (`packets`) and computes when each is presented (`timeline`). A
second pass decodes them once, from front to back (`video_track`, `audio_track`). This code travels
inside registered models, so it needs PyAV and NumPy alone. A segment is yielded as soon as both
streams have passed its end, so a longer source takes only some 80 bytes of memory more per packet.

The clock starts with the picture, or earlier by whole frames if the sound starts first. It ticks
`frame_rate` times a second. The frame of a tick is the one that a player shows in its middle:

    sound    ======================================......    silence at the end
    picture          A-------B----C---D------------------    on until the next one, or to the end
    clock        |   .   |   .   |   .   |   .   |   .   |   ticks, and their middles
    stored           A       A       C       D       D       before A is on: A, as what comes next
    second       0                                           not where the sound starts, so that
                                                             frames of equal rate are each met once
"""

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from pipelines.media.audio_track import AudioTrack
from pipelines.media.container import (
    DecodeError,
    MediaInfo,
    MediaInput,
    check_codecs,
    check_declared_limits,
    clock_origin,
    open_source,
    start_seconds,
)
from pipelines.media.cutter import Cutter
from pipelines.media.damage import DamageLimit, check_sums
from pipelines.media.formats import Formats
from pipelines.media.in_sequence import decode_in_sequence
from pipelines.media.joined_files import breaks_off, follow_each_other, joined_parts
from pipelines.media.packets import PacketScan, PacketTable
from pipelines.media.picture import PictureConverter, PixelLimitError
from pipelines.media.reader import due_packets, seekable
from pipelines.media.segments import ClockRepairs, Segment
from pipelines.media.streams.declarations import late_kinds
from pipelines.media.streams.reordering import lacks_presentation_times
from pipelines.media.streams.selection import select_streams
from pipelines.media.timeline import StreamTimeline, Timeline, build_timeline, kept_packets
from pipelines.media.video_track import VideoTrack
from pipelines.redaction import one_line

__all__ = ["ClockRepairs", "DecodeError", "MediaInfo", "Segment", "decode_segments"]

MAX_START_ERROR_SECONDS = 1.0
"""If a stream begins further from its declared start, its packets are believed instead."""


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
    """Decodes a source from front to back and yields its segments.

    Damaged packets are skipped. Segments begin at multiples of their length, rounded to whole
    frames; the last one ends with the source. If the picture begins late, one ends there, and the
    others begin at multiples from there on.

    Args:
        source: A path, the descriptor of an open file, or a file object.
        segment_seconds: Length of a segment.
        min_segment_seconds: A shorter remainder is dropped.
        min_source_seconds: A shorter source is refused. Default: `min_segment_seconds`.
        frame_rate: Frames per second to keep.
        short_side: Pixels of the shorter side. Smaller pictures keep their size.
        sample_rate: Samples per second.
        max_pixels: Limit for one frame.
        max_seconds: Limit for the whole source.
        max_damaged_fraction: Largest share of damaged frames, in the picture or in the sound.
        formats: Which containers and codecs are decoded.

    Raises:
        DecodeError: If nothing decodes or a limit is exceeded. Segments that were yielded before
            must then be discarded.
    """
    settings = _Settings(
        segment_seconds=segment_seconds,
        min_segment_seconds=min_segment_seconds,
        min_source_seconds=min_source_seconds or min_segment_seconds,
        frame_rate=frame_rate,
        short_side=short_side,
        sample_rate=sample_rate,
        max_pixels=max_pixels,
        max_seconds=max_seconds,
        max_damaged_fraction=max_damaged_fraction,
        formats=formats,
    )
    yield from _decode(source, settings)


@dataclass(frozen=True)
class _Settings:
    """Arguments of `decode_segments`."""

    segment_seconds: float
    min_segment_seconds: float
    min_source_seconds: float
    frame_rate: float
    short_side: int
    sample_rate: int
    max_pixels: int
    max_seconds: float
    max_damaged_fraction: float
    formats: Formats


def _decode(source: MediaInput, settings: _Settings) -> Generator[Segment, None, float]:
    """Yields the segments of a source; returns the seconds at its end that are dropped."""
    formats, frame_rate = settings.formats, settings.frame_rate
    with _with_reasons(), ExitStack() as cleanup:
        source = seekable(source, cleanup)
        container = cleanup.enter_context(open_source(source, formats))
        selection = select_streams(container, source, formats)
        scan = selection.scan
        parts = joined_parts(source, container, scan, selection.declarations, cleanup)
        if parts:
            container.close()
            decode_part = partial(_decode, settings=settings)
            return (yield from decode_in_sequence(parts, decode_part, settings.max_seconds))
        late = late_kinds(container, selection.declarations)
        probes_all = bool(late)
        if late:
            container.close()
            container = cleanup.enter_context(open_source(source, formats, probes_all=True))
            selection = select_streams(container, source, formats, probes_all=True)
            scan, late = selection.scan, late_kinds(container, selection.declarations)
        streams = selection.streams(container)
        check_codecs(*streams, formats)
        check_declared_limits(container, streams[0], settings.max_pixels, settings.max_seconds)
        timeline = build_timeline(
            container,
            scan,
            selection.video,
            selection.audio,
            pictures_by_order=streams[0] is not None
            and lacks_presentation_times(
                source, formats, streams[0], scan.tables[streams[0].index], probes_all=probes_all
            ),
        )
        origin = _origin(streams, timeline, scan, frame_rate)
        converter = PictureConverter(
            crop=selection.crop, short_side=settings.short_side, max_pixels=settings.max_pixels
        )
        video = _video_track(streams[0], timeline, scan, origin, frame_rate, converter)
        audio = _audio_track(streams[1], timeline, origin, settings.sample_rate)
        _check_any(video, audio, scan)
        selection = selection.declaring(late)
        cutter = Cutter(container, selection, video, audio, frame_rate, settings.sample_rate)
        cutter.ticks_per_segment = max(1, round(settings.segment_seconds * frame_rate))
        cutter.min_seconds, cutter.max_seconds = settings.min_segment_seconds, settings.max_seconds
        cutter.min_source_seconds = settings.min_source_seconds
        cutter.damage = DamageLimit(settings.max_damaged_fraction)
        leaves_out = bool(late) or follow_each_other(container, scan) or breaks_off(container, scan)
        cutter.heed(timeline, origin, leaves_out=leaves_out)
        packets = due_packets(source, formats, scan, timeline, cleanup, probes_all=probes_all)
        return (yield from cutter.segments(packets))


@contextmanager
def _with_reasons() -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise DecodeError("out_of_memory", str(error) or "cannot allocate memory") from error
    except PixelLimitError as error:
        raise DecodeError("too_many_pixels", str(error)) from error


def _check_any(video: VideoTrack | None, audio: AudioTrack | None, scan: PacketScan) -> None:
    if video is None and audio is None:
        cause = one_line(scan.errors[0]) if scan.errors else "the streams hold no frame"
        raise DecodeError("undecodable", cause)


def _video_track(
    stream: VideoStream | None,
    timeline: Timeline,
    scan: PacketScan,
    origin: float,
    frame_rate: float,
    converter: PictureConverter,
) -> VideoTrack | None:
    if stream is None or (times := timeline.streams.get(stream.index)) is None:
        return None
    has_key = bool(scan.tables[stream.index].is_key.any())
    return VideoTrack(stream, times, origin, frame_rate, converter, waits_for_key=has_key)


def _audio_track(
    stream: AudioStream | None, timeline: Timeline, origin: float, sample_rate: int
) -> AudioTrack | None:
    if stream is None or (times := timeline.streams.get(stream.index)) is None:
        return None
    check_sums(stream)
    return AudioTrack(stream, times, origin, sample_rate)


_Streams = tuple[VideoStream | None, AudioStream | None]


def _origin(streams: _Streams, timeline: Timeline, scan: PacketScan, frame_rate: float) -> float:
    starts: list[float | None] = []
    for stream in streams:
        start = start_seconds(stream)
        times = timeline.streams.get(stream.index) if stream else None
        if stream is not None and times is not None:
            is_declared = stream.start_time is not None and stream.index not in scan.restored
            declared = start if is_declared else None
            start = _true_start(declared, times, scan.tables[stream.index])
        elif start is not None:
            start = None  # it declares a start, but has no packets
        starts.append(start)
    if starts == [None, None]:
        return 0.0
    if starts[0] is not None and starts[1] is None and streams[0] is not None:
        # Without sound, a source that was cut begins with the first picture that decodes.
        index = streams[0].index
        if index in timeline.streams:
            start = _first_key_start(timeline.streams[index], scan.tables[index])
            starts[0] = max(starts[0], start)
    return clock_origin(starts[0], starts[1], frame_rate)


def _first_key_start(times: StreamTimeline, table: PacketTable) -> float:
    """Returns the start of the first key picture; minus infinity if nothing precedes it."""
    keys = np.flatnonzero(table.is_key & np.isfinite(times.starts))
    return float(times.starts[keys[0]]) if len(keys) and keys[0] > 0 else -np.inf


def _true_start(declared: float | None, times: StreamTimeline, table: PacketTable) -> float:
    """Returns when a stream begins, without packets that an edit list hides."""
    starts = times.starts[kept_packets(table)][:64]
    first = times.shown[0] if len(times.shown) else float(np.nanmin([*starts, np.inf]))
    if not np.isfinite(first):
        return declared or 0.0
    if declared is not None and abs(first - declared) <= MAX_START_ERROR_SECONDS:
        return declared
    return float(first)

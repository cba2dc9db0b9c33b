"""Decodes joined files one after another, on one clock."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

from pipelines.media.container import DecodeError
from pipelines.media.joined_files import Part
from pipelines.media.segments import Segment

LOST_REASONS = frozenset({"too_short", "undecodable", "not_media", "no_streams"})
"""Reasons for which one of several joined files is left out and counted as a decode error. Others
reject the whole source."""
PADDING_SECONDS = 0.25
"""Codecs pad the end of a file by less; a longer rest that is dropped is a loss."""


def decode_in_sequence(
    parts: Sequence[Part],
    decode: Callable[[Part], Generator[Segment, None, float]],
    max_seconds: float,
) -> Generator[Segment, None, float]:
    """Decodes joined files one after another, on one clock.

    A file without a segment, or with a rest that is dropped although another file follows, is
    counted as a decode error.

    Args:
        parts: The files.
        decode: Yields the segments of a file; returns the seconds at its end that are dropped.
        max_seconds: Limit for all files together.

    Raises:
        DecodeError: If one is not allowed, or if none gives a segment.
    """
    waiting: Segment | None = None
    lost: list[DecodeError] = []
    seconds = offset = rest = 0.0
    num_rests = 0
    for number, part in enumerate(parts):
        end = offset
        num_rests += rest > PADDING_SECONDS
        segments = _Counted(decode(part))
        try:
            for index, segment in enumerate(segments):
                if waiting is not None:
                    yield waiting
                waiting = _moved(segment, offset, number > 0, leaps=number > 0 and index == 0)
                end = waiting.start_seconds + waiting.duration_seconds
                seconds += waiting.duration_seconds
                if seconds > max_seconds:
                    raise DecodeError(
                        "too_long", f"longer than limits.max_seconds ({max_seconds:g})"
                    )
        except DecodeError as error:
            if error.reason not in LOST_REASONS:
                raise
            lost.append(error)
        offset, rest = end, segments.rest
    if waiting is None:
        raise lost[0]
    num_errors = waiting.decode_errors + len(lost) + num_rests
    yield replace(waiting, decode_errors=num_errors)
    return rest


class _Counted:
    """Segments of a file, and what is dropped after the last one."""

    def __init__(self, segments: Generator[Segment, None, float]) -> None:
        self._segments = segments
        self.rest = 0.0

    def __iter__(self) -> Iterator[Segment]:
        self.rest = yield from self._segments


def _moved(segment: Segment, offset: float, is_later: bool, leaps: bool) -> Segment:
    # What one file declares is not the duration of the source.
    segment = replace(segment, info=replace(segment.info, duration_seconds=0.0))
    repairs = segment.repairs
    if is_later:
        both = (segment.frames is not None) + (segment.waveform is not None)
        num_leaps = repairs.clock_leaps + leaps
        repairs = replace(repairs, clock_leaps=num_leaps, rebased_clocks=both)
    return replace(segment, start_seconds=segment.start_seconds + offset, repairs=repairs)

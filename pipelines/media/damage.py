"""Detects damaged packets, and rejects a source with too many of them.

A decoder reports damage by an exception, by a flag of a frame, or only in FFmpeg's log. The log is
read for codecs whose decoders show a damaged picture or play damaged sound without more.

Other codecs decode most damage to some picture or sound. It is known only where the container
tells. That is counted, but rejects no source, because the number of damaged frames is unknown:

    codec                               Ogg        Matroska by FFmpeg   MPEG-TS      others
    VP8, VP9 (half of it), Vorbis,      checksum   checksum             lost or      unknown
    Opus, MPEG audio, PCM, Theora,      of pages   of clusters          marked
    FFV1 without checksums                                              packets

The optional checksums of MPEG audio are not compared.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import av
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from pipelines.media.container import DecodeError

LOGGING_CODECS = frozenset({"hevc", "vp9", "ffv1", "flac", "ac3", "eac3"})
"""Codecs that log damage, and nothing for the intact files of real corpora. H.264 flags its frames
and logs other things as well."""
_CHECKED_CODECS = frozenset({"flac", "ac3", "eac3"})
"""Codecs whose checksums FFmpeg compares only if it is asked to."""


def check_sums(stream: VideoStream | AudioStream) -> None:
    """Makes the decoder of a stream compare checksums that it would ignore."""
    if stream.codec_context.name in _CHECKED_CODECS:
        stream.codec_context.options = {"err_detect": "crccheck"}


@contextmanager
def logged(stream: VideoStream | AudioStream) -> Iterator[list[tuple[int, str, str]]]:
    """Collects the errors that the decoder of a stream logs, if they mean damage."""
    if stream.codec_context.name not in LOGGING_CODECS:
        yield []
        return
    before = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as messages:
            yield messages
    finally:
        av.logging.set_level(before)


class DamageLimit:
    """Counts the damaged packets of each stream."""

    def __init__(self, max_fraction: float) -> None:
        self._max_fraction = max_fraction
        self._counts: Counter[int] = Counter()

    def add(self, stream: VideoStream | AudioStream, num_packets: int) -> None:
        """Counts a damaged packet of a stream that has some number of packets.

        Raises:
            DecodeError: If too large a share of them is damaged.
        """
        self._counts[stream.index] += 1
        num_damaged = self._counts[stream.index]
        if num_damaged > self._max_fraction * num_packets:
            what = "picture" if isinstance(stream, VideoStream) else "sound"
            raise DecodeError(
                "damaged",
                f"{num_damaged} or more of {num_packets} packets of the {what}, "
                f"limits.max_damaged_fraction ({self._max_fraction:g})",
            )

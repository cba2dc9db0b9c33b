"""The containers and codecs that may be decoded.

FFmpeg reads some 350 formats, most of them obsolete, and a hostile file can reach the code of each.
By default only those that real corpora use are allowed.
"""

from functools import lru_cache
from typing import Literal

import av
from av.codec.codec import UnknownCodecError
from av.stream import Stream

Formats = Literal["common", "all"]

COMMON_CONTAINERS = frozenset(
    {
        "asf",
        "avi",
        "flac",
        "flv",
        "h264",
        "matroska",
        "mov",
        "mp3",
        "mpeg",
        "mpegts",
        "ogg",
        "wav",
    }
)
"""Names of FFmpeg's demuxers. `mov` includes MP4, `matroska` includes WebM."""
COMMON_CODECS = frozenset(
    {
        # pictures
        "av1",
        "ffv1",
        "h263",
        "h264",
        "hevc",
        "mjpeg",
        "mpeg1video",
        "mpeg2video",
        "mpeg4",
        "msmpeg4v3",
        "theora",
        "vp8",
        "vp9",
        # sound
        "aac",
        "ac3",
        "eac3",
        "flac",
        "mp2",
        "mp3",
        "opus",
        "pcm_f32le",
        "pcm_s16le",
        "pcm_s24le",
        "pcm_u8",
        "vorbis",
    }
)
"""FFmpeg's names of codecs, independent of the decoder."""

_PLAYLISTS = {"hls", "dash", "concat", "imf", "webm_dash_manifest", "sdp", "vobsub"}
"""Formats whose files refer to other files, possibly to themselves."""
_DEVICES = {"image2", "lavfi", "rtsp", "rtp", "sap", "alsa", "oss", "fbdev", "kmsgrab", "x11grab"}
"""Formats whose input name is not a file."""
_TEXT = {
    *("adf", "bin", "idf", "sbg", "tty", "xbin"),
    *("aqtitle", "ass", "ffmetadata", "jacosub", "lrc", "mcc", "microdvd", "mpl2", "mpsub", "pjs"),
    *("realtext", "sami", "scc", "srt", "stl", "subviewer", "subviewer1", "tedcaptions", "ttml"),
    *("vplayer", "webvtt"),
}
"""Text formats that FFmpeg would render as a picture, sound or subtitles."""
_RAW = {
    *(f"{kind}{bits}{end}" for kind in "su" for bits in (16, 24, 32) for end in ("le", "be")),
    *(f"f{bits}{end}" for bits in (32, 64) for end in ("le", "be")),
    *("alaw", "bitpacked", "codec2raw", "data", "g722", "g726", "g726le", "mulaw", "rawvideo"),
    *("s8", "u8", "v210", "v210x", "vidc", "sln", "gsm", "aptx", "aptx_hd", "sbc", "dfpwm"),
}
"""Formats without a header, recognized by the file extension alone; any bytes would be media."""
NEVER = frozenset({*_PLAYLISTS, *_DEVICES, *_TEXT, *_RAW, "video4linux2", "v4l2"})
"""Formats that are never opened."""


@lru_cache(maxsize=2)
def container_whitelist(formats: Formats) -> str:
    """Returns the demuxers that may open a file, for FFmpeg's option `format_whitelist`."""
    if formats == "common":
        return ",".join(sorted(COMMON_CONTAINERS))
    # A demuxer can have several names, separated by commas.
    return ",".join(sorted(n for n in av.formats_available if NEVER.isdisjoint(n.split(","))))


@lru_cache(maxsize=1)
def decoder_whitelist() -> str:
    """Returns the decoders of the common codecs, for FFmpeg's option `codec_whitelist`."""
    return ",".join(sorted(filter(_decodes_common, av.codecs_available)))


def _decodes_common(name: str) -> bool:
    try:
        return av.Codec(name, "r").canonical_name in COMMON_CODECS
    except UnknownCodecError:  # it only encodes
        return False


def is_common(stream: Stream) -> bool:
    """Returns whether a stream with a known decoder is in a common codec."""
    return codec_of(stream) in COMMON_CODECS


def codec_of(stream: Stream) -> str:
    """Returns the codec of a stream, independent of the decoder."""
    return str(stream.codec_context.codec.canonical_name)

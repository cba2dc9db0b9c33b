"""Reads programs and crop borders of a container, for which PyAV has no attributes.

FFmpeg prints both when it dumps the format of a file:

      Program 1
      Stream #0:0[0x100]: Video: h264 (Main), yuv420p, 640x360, 24 fps
        Side data:
          Frame Cropping: 20/40/10/30
      Stream #0:1[0x101]: Audio: aac (LC), 48000 Hz, stereo
      Program 2
      Stream #0:2[0x110]: Video: ...
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import av
import av.container

from pipelines.media.picture import Crop

_PROGRAM = re.compile(r"  Program \d+\b")
_NO_PROGRAM = re.compile(r"  No Program")
_STREAM = re.compile(r"\s+Stream #\d+:(\d+)")
_CODEC = re.compile(r"\s+Stream #\d+:(\d+).*?: ((?:Video|Audio): \w+)")
_CROP = re.compile(r"\s+Frame Cropping: (\d{1,9})/(\d{1,9})/(\d{1,9})/(\d{1,9})$")


LATE_FORMATS = frozenset({"mpeg", "mpegts", "flv"})
"""Formats in which streams need not be declared at the beginning."""


@dataclass(frozen=True)
class Declarations:
    """Programs, and properties by index of the stream."""

    programs: tuple[frozenset[int], ...] = ()
    """The streams of each program; empty for a file without programs."""
    crops: Mapping[int, Crop] = field(default_factory=dict)
    codecs: Mapping[int, str] = field(default_factory=dict)
    """Kinds and codecs, such as "Video: h264", by index of the stream. They change while FFmpeg
    reads a transport stream that declares others, which PyAV does not show."""


def read_declarations(container: av.container.InputContainer) -> Declarations:
    """Reads FFmpeg's dump of an open container."""
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.INFO)
    av.logging.set_skip_repeated(False)
    try:
        printable: Any = container  # missing in the type stubs
        return parse_dump(printable.dumps_format())
    finally:
        av.logging.set_skip_repeated(skips)
        av.logging.set_level(level)


def late_kinds(container: av.container.InputContainer, before: Declarations) -> set[str]:
    """Returns the kinds (video, audio) of streams that FFmpeg found after the file was opened.

    They begin further into a program stream, or an FLV file, than FFmpeg probes, so that PyAV does
    not give their packets.

    Args:
        container: The source, at its end.
        before: What it declared when it was opened.
    """
    if container.format.name not in LATE_FORMATS:
        return set()
    is_late = [not stream.codec_context for stream in container.streams]
    late = [
        codec
        for index, codec in read_declarations(container).codecs.items()
        if index >= len(is_late) or (is_late[index] and codec != before.codecs.get(index))
    ]
    return {codec.partition(":")[0].lower() for codec in late}


def parse_dump(text: str) -> Declarations:
    """Parses the programs and crop borders of a dump."""
    programs: list[set[int]] = []
    crops: dict[int, Crop] = {}
    codecs: dict[int, str] = {}
    stream: int | None = None
    is_in_program = False
    for line in text.splitlines():
        if _PROGRAM.match(line):
            programs.append(set())
            is_in_program = True
        elif _NO_PROGRAM.match(line):
            is_in_program = False
        elif found := _STREAM.match(line):
            stream = int(found[1])
            if codec := _CODEC.match(line):
                codecs[stream] = codec[2]
            if is_in_program:
                programs[-1].add(stream)
        elif stream is not None and (found := _CROP.match(line)):
            left, right, top, bottom = map(int, found.groups())
            crops[stream] = Crop(left, right, top, bottom)
    sets = tuple(frozenset(program) for program in programs if program)
    return Declarations(sets, crops, codecs)

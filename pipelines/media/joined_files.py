"""Finds files that were joined in ways that FFmpeg cannot read as one, and decodes each by itself.

FFmpeg reads past a join if the streams stay the same. Otherwise, it ends there, or continues with
the decoders of the first file:

    Ogg                 another codec or sample rate, or a picture beside the sound
    transport stream    other stream numbers, or numbers that are used for other codecs
    program stream      sound in another codec, or a stream that the first file lacks
    MP4, FLV, ASF, WAV  any second file, because the first header describes the first one alone
    AVI, Matroska       other codecs or codec headers, because FFmpeg keeps the first ones
    FLAC                another sample rate

A join is only looked for where the packet scan gives a reason.
"""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice, pairwise
from typing import BinaryIO

import av.container
import numpy as np

from pipelines.media.container import MediaInput, open_file
from pipelines.media.file_view import View
from pipelines.media.jumps import AHEAD_SECONDS, BACK_SECONDS
from pipelines.media.packets import PacketScan, PacketTable
from pipelines.media.streams.declarations import Declarations, late_kinds, read_declarations
from pipelines.media.streams.program_stream import clock_changes
from pipelines.media.streams.transport_stream import program_changes

MAX_FILES = 1000
"""Limit of joined files, because a hostile file could hold any number of headers."""
MAX_UNREAD_FRACTION = 0.1
"""Tables and other streams take up less of the end of a transport stream."""
_CHUNK_BYTES = 1 << 20
_HEADERS = {
    "asf": re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c"),
    "flac": re.compile(rb"fLaC[\x00\x80]\x00\x00\x22"),
    "flv": re.compile(rb"FLV\x01[\x00-\x05]\x00\x00\x00\x09\x00{4}"),
    "matroska": re.compile(rb"\x1a\x45\xdf\xa3[\x01-\xff].{0,60}?\x42\x82", re.DOTALL),
    "ogg": re.compile(rb"OggS\x00[\x02\x06]"),
}
"""Headers of files; of Ogg, the first page of a stream."""
_MAX_HEADER_BYTES = 80
_PAGE_HEADER_BYTES = 27
_MAX_BOXES = 20_000
_MIN_REST_BYTES = 64


class Part(View):
    """A range of bytes of an open file, as a file of its own."""

    def __init__(self, file: int | BinaryIO, start: int, stop: int) -> None:
        super().__init__(file)
        self._start, self._stop = start, stop

    def read(self, size: int = -1) -> bytes:
        """Reads from its position."""
        position = self.tell()
        left = max(0, self._stop - self._start - position)
        self.seek(self._start + position)
        data = super().read(left if size < 0 else min(size, left))
        self.seek(position + len(data))
        return data

    def _size(self) -> int:
        return self._stop - self._start


def joined_parts(
    source: MediaInput,
    container: av.container.InputContainer,
    scan: PacketScan,
    before: Declarations,
    cleanup: ExitStack,
) -> list[Part]:
    """Returns the files of which a source consists; none if FFmpeg reads it as one.

    Args:
        source: The source. A path is opened again if there is a reason to look into it.
        container: The source as FFmpeg sees it, at its end.
        scan: All packets of the container.
        before: What the container declared before the scan.
        cleanup: Closes the file that this opens.
    """
    size = container.size or 0
    read_until = _last_byte(scan)
    has_rest = 0 < read_until < size - _MIN_REST_BYTES
    if isinstance(source, Part) or not _has_reason(container, scan, before, has_rest):
        return []
    file = source
    if isinstance(file, str):
        file = open_file(file)
        cleanup.callback(os.close, file)
    found = islice(_starts(View(file), container, read_until), MAX_FILES)
    starts = [at for at in found if 0 < at < size]
    if not starts:
        return []
    return [Part(file, start, stop) for start, stop in pairwise([0, *starts, size])]


def _has_reason(
    container: av.container.InputContainer, scan: PacketScan, before: Declarations, has_rest: bool
) -> bool:
    """Returns whether the packets suggest that other files follow the first one."""
    name = _name(container)
    if name == "ogg":
        return bool(scan.errors)
    leaps = any(map(_leaps, scan.tables.values()))
    if name == "mpegts":
        changes = read_declarations(container).codecs != before.codecs
        return leaps or changes or follow_each_other(container, scan)
    if name == "mpeg":
        return leaps and (follow_each_other(container, scan) or bool(late_kinds(container, before)))
    if name in {"mov", "matroska", "flac"} and leaps:
        return True
    return name == "avi" or (has_rest and name in {"mov", "matroska", "flv", "asf", "wav"})


def _starts(view: View, container: av.container.InputContainer, read_until: int) -> Iterator[int]:
    """Returns where other files begin."""
    name = _name(container)
    size = container.size or 0
    if name == "ogg":
        return _link_starts(view)
    if name == "mpegts":
        return program_changes(view, {stream.id for stream in container.streams})
    if name == "mpeg":
        return clock_changes(view)
    if name == "mov":
        return _later_boxes(view, size)
    if name in {"avi", "wav"}:
        return _later_chunks(view, size)
    return _headers(view, _HEADERS[name], read_until if name in {"asf", "flv"} else 1)


def _name(container: av.container.InputContainer) -> str:
    return container.format.name.partition(",")[0]


def _end_of(table: PacketTable) -> int:
    known = table.position >= 0
    return int((table.position + table.size)[known].max()) if known.any() else 0


def _leaps(table: PacketTable) -> bool:
    """Returns whether decoding times step back or far ahead."""
    times = np.where(np.isnan(table.dts), table.pts, table.dts)
    steps = np.diff(times[~np.isnan(times)])
    return bool(((steps < -BACK_SECONDS) | (steps > AHEAD_SECONDS)).any())


def follow_each_other(container: av.container.InputContainer, scan: PacketScan) -> bool:
    """Returns whether a stream begins after another one of its kind has ended.

    A single picture is no stream of its own, such as the first one of an image sequence.
    """
    for streams in (container.streams.video, container.streams.audio):
        orders = [scan.tables[each.index].order for each in streams if each.index in scan.tables]
        spans = sorted((int(order[0]), int(order[-1])) for order in orders if len(order) > 1)
        if any(after[0] > before[1] for before, after in pairwise(spans)):
            return True
    return False


def breaks_off(container: av.container.InputContainer, scan: PacketScan) -> bool:
    """Returns whether a transport stream goes on after its last packet, as if scrambled."""
    size = container.size or 0
    last = _last_byte(scan)
    return _name(container) == "mpegts" and 0 < last < (1 - MAX_UNREAD_FRACTION) * size


def _last_byte(scan: PacketScan) -> int:
    return max((_end_of(table) for table in scan.tables.values()), default=0)


def _headers(view: View, pattern: re.Pattern[bytes], start: int) -> Iterator[int]:
    """Yields the positions of headers from a position on."""
    data = b""
    view.seek(start)
    while more := view.read(_CHUNK_BYTES):
        data += more
        at = view.tell() - len(data)
        found = [match.start() for match in pattern.finditer(data)]
        yield from (at + each for each in found)
        # A header may lie across the border.
        after = found[-1] + 1 if found else 0
        data = data[max(after, len(data) - _MAX_HEADER_BYTES) :]


def _link_starts(view: View) -> Iterator[int]:
    """Yields where links of chained Ogg begin: a first page that follows no other first page."""
    end_of_last = 0
    for at in _headers(view, _HEADERS["ogg"], 0):
        if at != end_of_last:
            yield at
        view.seek(at + _PAGE_HEADER_BYTES - 1)
        sizes = view.read(256)
        end_of_last = at + _PAGE_HEADER_BYTES + sizes[0] + sum(sizes[1 : 1 + sizes[0]])


def _later_chunks(view: View, size: int) -> Iterator[int]:
    """Yields where files begin among the outermost chunks of an AVI or WAV file.

    Large AVI files continue in chunks of type AVIX.
    """
    at = 0
    for _ in range(_MAX_BOXES):
        view.seek(at)
        header = view.read(12)
        length = int.from_bytes(header[4:8], "little")
        if header[:4] != b"RIFF" or length < 4 or at + 8 + length > size:
            return
        if at and header[8:] in {b"AVI ", b"WAVE"}:
            yield at
        at += 8 + length + length % 2


def _later_boxes(view: View, size: int) -> Iterator[int]:
    """Yields where files begin among the outermost boxes of an MP4 file."""
    at = 0
    seen: set[bytes] = set()
    for _ in range(_MAX_BOXES):
        view.seek(at)
        header = view.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8 or at + length > size:
            return
        if header[4:8] == b"ftyp" and {b"moov", b"mdat"} <= seen:
            yield at
            seen.clear()
        seen.add(header[4:8])
        at += length

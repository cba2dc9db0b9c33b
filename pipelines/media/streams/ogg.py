"""Compares the checksums of the pages of Ogg (RFC 3533, section 6).

FFmpeg skips a page whose checksum differs, and says so in its log alone, in part while it opens the
file.
"""

import zlib
from contextlib import ExitStack
from dataclasses import replace

import av.container

from pipelines.media.container import MediaInput, view_of
from pipelines.media.file_view import View
from pipelines.media.packets import PacketScan

_MARK = b"OggS\0"
_HEADER_BYTES, _MAX_PAGE_BYTES = 27, 27 + 255 + 255 * 255
_CHECKSUM = slice(22, 26)
_CHUNK_BYTES = 1 << 20
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_ALL_BITS = 0xFFFFFFFF


def checked(
    source: MediaInput, container: av.container.InputContainer, scan: PacketScan
) -> PacketScan:
    """Returns a scan that counts the damaged pages of an Ogg file, which is read once more.

    Args:
        source: The source.
        container: The source as FFmpeg sees it.
        scan: All packets of the container.
    """
    if container.format.name != "ogg":
        return scan
    with ExitStack() as cleanup:
        num_damaged = count_damaged_pages(view_of(source, cleanup))
    return replace(scan, num_damaged=scan.num_damaged + num_damaged)


def count_damaged_pages(view: View) -> int:
    """Counts pages with wrong checksums, and stretches between pages that are none.

    A file that was cut has lost the end of its last page, which counts elsewhere.
    """
    view.seek(0)
    data, start, at = view.read(_CHUNK_BYTES), 0, 0
    num_damaged = 0
    expected: int | None = None  # where a page follows, unless the one before is damaged
    while data:
        found = data.find(_MARK, at)
        if found < 0 or found + _MAX_PAGE_BYTES > len(data):
            # Pages may lie across the border.
            at = found if found >= 0 else max(at, len(data) - len(_MARK) + 1)
            if more := view.read(_CHUNK_BYTES):
                data, start, at = data[at:] + more, start + at, 0
                continue
            if found < 0 or found + _page_bytes(data, found) > len(data):
                return num_damaged
        page = data[found : found + _page_bytes(data, found)]
        is_whole = _has_checksum(page)
        is_expected = expected is None or start + found == expected
        num_damaged += not (is_whole and is_expected)
        at = found + (len(page) if is_whole else len(_MARK))
        expected = start + at if is_whole else None
    return num_damaged


def _page_bytes(data: bytes, at: int) -> int:
    """Returns the size of the page at a position; the largest one if its header is incomplete."""
    sizes_at = at + _HEADER_BYTES
    if sizes_at > len(data):
        return _MAX_PAGE_BYTES
    num_sizes = data[sizes_at - 1]
    return _HEADER_BYTES + num_sizes + sum(data[sizes_at : sizes_at + num_sizes])


def _has_checksum(page: bytes) -> bool:
    """Compares a checksum like that of zlib, but with reversed bits and no inversion."""
    content = page[: _CHECKSUM.start] + bytes(4) + page[_CHECKSUM.stop :]
    reverse = zlib.crc32(content.translate(_REVERSED), _ALL_BITS) ^ _ALL_BITS
    return reverse.to_bytes(4, "big").translate(_REVERSED) == page[_CHECKSUM]

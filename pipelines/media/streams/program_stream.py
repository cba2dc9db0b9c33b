"""Finds where MPEG program streams were joined, by their clock.

ISO/IEC 13818-1, section 2.5.3.3, and ISO/IEC 11172-1: each pack begins with the time at which its
last byte arrives. FFmpeg reads a joined stream as one, and so loses the sound of a file in another
codec.
"""

import re
from collections.abc import Iterator

from pipelines.media.file_view import View
from pipelines.media.jumps import AHEAD_SECONDS, BACK_SECONDS

CLOCK_HERTZ = 90_000
_CHUNK_BYTES = 1 << 20
_PACK = re.compile(rb"\x00\x00\x01\xba([\x40-\x7f].{4}|[\x20-\x2f].{4})", re.DOTALL)
_PACK_BYTES = 9


def clock_changes(view: View) -> Iterator[int]:
    """Yields the positions of packs whose clock does not go on from the pack before."""
    before: float | None = None
    for at, now in _packs(view):
        if before is not None and not -BACK_SECONDS <= now - before <= AHEAD_SECONDS:
            yield at
        before = now


def _packs(view: View) -> Iterator[tuple[int, float]]:
    """Yields the position and the time, in seconds, of each pack."""
    view.seek(0)
    data = b""
    while more := view.read(_CHUNK_BYTES):
        data += more
        start = view.tell() - len(data)
        for found in _PACK.finditer(data):
            yield start + found.start(), _seconds(found[1])
        # A header may lie across the border, but one that was found does not begin there.
        keep = _PACK_BYTES - 1
        data = data[-keep:]


def _seconds(code: bytes) -> float:
    """Returns the base of the system clock reference: 33 bits, with markers between them.

    MPEG-2    01bbb1bb bbbbbbbb bbbbb1bb bbbbbbbb bbbbb1..
    MPEG-1    0010bbb1 bbbbbbbb bbbbbbb1 bbbbbbbb bbbbbbb1
    """
    bits = int.from_bytes(code, "big")
    if code[0] & 0xC0 == 0x40:
        high, middle, low = bits >> 35 & 0x7, bits >> 19 & 0x7FFF, bits >> 3 & 0x7FFF
    else:
        high, middle, low = bits >> 33 & 0x7, bits >> 17 & 0x7FFF, bits >> 1 & 0x7FFF
    return (high << 30 | middle << 15 | low) / CLOCK_HERTZ

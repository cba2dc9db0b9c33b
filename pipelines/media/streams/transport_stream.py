"""Reads the tables of an MPEG transport stream that list the streams of its programs.

ISO/IEC 13818-1, section 2.4.4. FFmpeg applies a new table to the streams that it has, so a number
that is used again for another codec or another kind of stream goes to the wrong decoder.
"""

from collections.abc import Iterator, Set

import numpy as np
from numpy.typing import NDArray

from pipelines.media.file_view import View
from pipelines.media.packets import PacketScan

_PACKET_BYTES = (188, 192, 204)
_SYNC = 0x47
_CHUNK_PACKETS = 5_000
MAX_PAUSE_SECONDS = 0.5
"""Streams of transport streams begin and end together, and have no longer pauses."""
_SCRAMBLED = 0x80
_MIN_SCRAMBLED_PACKETS, _MIN_SCRAMBLED_FRACTION = 8, 0.01
"""Fewer packets are damaged rather than scrambled."""
_PROGRAM_TABLE = 0
_TABLE_OF_PROGRAMS, _TABLE_OF_STREAMS = 0, 2
_VIDEO = frozenset({0x01, 0x02, 0x10, 0x1B, 0x24, 0x33, 0xEA})
_AUDIO = frozenset({0x03, 0x04, 0x0F, 0x11, 0x81, 0x87})

Streams = dict[int, int]
"""Types of streams by their numbers (PIDs)."""


def program_changes(view: View, known: Set[int]) -> Iterator[int]:
    """Yields the positions where a program changes to streams that do not continue those before.

    Args:
        view: The file.
        known: Numbers of the streams that FFmpeg found.
    """
    current: dict[tuple[int, int], Streams] = {}
    sections: dict[int, bytes] = {}
    table_at = 0
    for at, number, section in _sections(view):
        if number == _PROGRAM_TABLE:
            table_at = at
        elif sections.get(number) != section:
            sections[number] = section
            program = number, int.from_bytes(section[3:5], "big")
            streams = _streams(section)
            before = current.get(program)
            if before and streams and _is_another(before, streams, known):
                # The table of programs comes first.
                yield table_at if at - table_at <= 4 * max(_PACKET_BYTES) else at
            current[program] = streams or before or {}


def lacks_packets(scan: PacketScan) -> bool:
    """Returns whether a stream has no packets, or none during a part of the file."""
    known = [table.dts[np.isfinite(table.dts)] for table in scan.tables.values()]
    if not all(map(len, known)):
        return True
    bounds = np.array([(times.min(), times.max()) for times in known]).reshape(-1, 2)
    is_apart = bool((np.ptp(bounds, axis=0) > MAX_PAUSE_SECONDS).any()) if len(bounds) else False
    return is_apart or any((np.abs(np.diff(times)) > MAX_PAUSE_SECONDS).any() for times in known)


def scrambled_streams(view: View) -> set[int]:
    """Returns the numbers of the streams of which at least a part is scrambled.

    FFmpeg finds no beginning of a picture or of sound in them, and says nothing.
    """
    numbers, flags = np.zeros(1 << 13, np.int64), np.zeros(1 << 13, np.int64)
    for _, packets in _packets(view):
        packets = packets[packets[:, 0] == _SYNC]
        of = _numbers(packets)
        numbers += np.bincount(of, minlength=len(numbers))
        flags += np.bincount(of[packets[:, 3] & _SCRAMBLED > 0], minlength=len(flags))
    least = np.maximum(_MIN_SCRAMBLED_PACKETS, _MIN_SCRAMBLED_FRACTION * numbers)
    return {int(number) for number in np.flatnonzero(flags >= least)}


def _is_another(before: Streams, after: Streams, known: Set[int]) -> bool:
    """Returns whether streams of a program are not those that it had before."""
    if any(before.get(number, kind) != kind for number, kind in after.items()):
        return True
    for kinds in (_VIDEO, _AUDIO, _VIDEO | _AUDIO):
        old, new = ({n for n, kind in each.items() if kind in kinds} for each in (before, after))
        if old and new and not old & new:
            return True
        if not new <= known:
            return True
    return False


def _sections(view: View) -> Iterator[tuple[int, int, bytes]]:
    """Yields position, number and content of the tables of programs and of their streams."""
    programs: set[int] = set()
    for start, packets in _packets(view):
        numbers = _numbers(packets)
        begins = (packets[:, 0] == _SYNC) & (packets[:, 1] & 0x40 > 0)
        for at in np.flatnonzero(begins & (numbers == _PROGRAM_TABLE)):
            programs |= _programs(_section(packets[at]))
        for at in np.flatnonzero(begins & np.isin(numbers, [_PROGRAM_TABLE, *programs])):
            yield start + int(at) * packets.shape[1], int(numbers[at]), _section(packets[at])


def _packets(view: View) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yields positions, and the packets that follow there as rows of bytes."""
    view.seek(0)
    length, start = _grid(view.read(8 * max(_PACKET_BYTES)))
    while length:
        view.seek(start)
        data = view.read(_CHUNK_PACKETS * length)
        count = len(data) // length
        if not count:
            return
        yield start, np.frombuffer(data, np.uint8, count * length).reshape(count, length)
        start += count * length


def _numbers(packets: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Returns the number of the stream (PID) of each packet."""
    return (packets[:, 1] & 0x1F).astype(np.int32) << 8 | packets[:, 2]


def _grid(data: bytes) -> tuple[int, int]:
    """Returns the length of packets and the position of the first one; 0 if there is none."""
    for length in _PACKET_BYTES:
        for start in range(length):
            if data[start : start + 5 * length : length] == bytes([_SYNC]) * 5:
                return length, start
    return 0, 0


def _section(packet: NDArray[np.uint8]) -> bytes:
    """Returns the table that begins in a packet, as far as the packet holds it."""
    data = packet[:188].tobytes()
    has_adaptation, has_payload = data[3] & 0x20, data[3] & 0x10
    at = 5 + data[4] if has_adaptation else 4
    if not has_payload or at >= len(data):
        return b""
    at += 1 + data[at]
    length = 3 + int.from_bytes(data[at + 1 : at + 3], "big") % 4096
    return data[at : at + length]


def _programs(section: bytes) -> set[int]:
    """Returns the numbers of the streams that hold the tables of programs."""
    if section[:1] != bytes([_TABLE_OF_PROGRAMS]):
        return set()
    entries = [section[at : at + 4] for at in range(8, len(section) - 7, 4)]
    return {int.from_bytes(each[2:], "big") & 0x1FFF for each in entries if any(each[:2])}


def _streams(section: bytes) -> Streams:
    if section[:1] != bytes([_TABLE_OF_STREAMS]) or len(section) < 16:
        return {}
    found: Streams = {}
    at = 12 + int.from_bytes(section[10:12], "big") % 4096
    while at + 5 <= len(section) - 4:
        found[int.from_bytes(section[at + 1 : at + 3], "big") & 0x1FFF] = section[at]
        at += 5 + int.from_bytes(section[at + 3 : at + 5], "big") % 4096
    return found

"""Reads the times of Matroska blocks that lie before zero, which FFmpeg drops.

A block stores its time relative to its cluster, and the sum may be negative, as in a recording
whose zero is not its beginning. FFmpeg then gives no time, and counts those of the sound from zero:

    stored           -2.00  -1.98  ...  -0.02   0.00   0.02
    FFmpeg, sound     0.00   0.02  ...   1.98   0.00   0.02      beside pictures without a time

RFC 9559, sections 5.1.3 (Cluster) and 10.1 (Block Structure).
"""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import av.container
import numpy as np
from numpy.typing import NDArray

from pipelines.media.container import MediaInput, open_file
from pipelines.media.file_view import View
from pipelines.media.packets import PacketScan, PacketTable

_FORMAT = "matroska,webm"
_CHUNK_BYTES = 1 << 20
_CLUSTER = re.compile(
    # ID, size, optional checksum, ID of the time, its size and value.
    rb"\x1f\x43\xb6\x75(?:[\x80-\xff]|[\x40-\x7f].|[\x20-\x3f]..|[\x10-\x1f].{3}|[\x08-\x0f].{4}"
    rb"|[\x04-\x07].{5}|[\x02\x03].{6}|\x01.{7})(?:\xbf\x84.{4})?\xe7"
    rb"(\x81.|\x82..|\x83.{3}|\x84.{4}|\x85.{5}|\x86.{6}|\x87.{7}|\x88.{8})",
    re.DOTALL,
)
_MAX_HEADER_BYTES = 40
_BLOCK_BYTES = 10
"""Number of the track, up to 8 bytes, and the relative time."""
_ONE_BITS = 1 << 64


def with_times_before_zero(
    source: MediaInput, container: av.container.InputContainer, scan: PacketScan
) -> PacketScan:
    """Returns a scan with the times that the file stores, if some lie before zero.

    Args:
        source: The source, which is read again if there is a reason.
        container: The source as FFmpeg sees it.
        scan: All packets of the container.
    """
    if container.format.name != _FORMAT:
        return scan
    with ExitStack() as cleanup:
        file = source
        if isinstance(file, str):
            file = open_file(file)
            cleanup.callback(os.close, file)
        view = View(file)
        if not any(_may_begin_before_zero(view, table) for table in scan.tables.values()):
            return scan
        clusters = np.array(list(_clusters(view)), np.int64).reshape(-1, 2)
        restored = {
            index: _with_stored_times(view, table, clusters) for index, table in scan.tables.items()
        }
    changed = frozenset(index for index in restored if restored[index] is not scan.tables[index])
    return replace(scan, tables=restored, restored=changed)


def _may_begin_before_zero(view: View, table: PacketTable) -> bool:
    if not len(table) or table.position[0] < 0:
        return False
    lacks_times = np.isnan(table.pts) & np.isnan(table.dts)
    return bool(lacks_times.any()) or (_relative_time(view, int(table.position[0])) or 0) < 0


def _with_stored_times(
    view: View, table: PacketTable, clusters: NDArray[np.int64]
) -> PacketTable:
    """Returns a table with stored times, if one of them is negative."""
    stored = np.full(len(table), np.nan)
    of_packet = np.searchsorted(clusters[:, 0], table.position) - 1
    # Packets of one block have one position; only the first one has the time of the block.
    is_first = np.diff(table.position, prepend=-1) != 0
    for at in np.flatnonzero((of_packet >= 0) & (table.position >= 0) & is_first):
        relative = _relative_time(view, int(table.position[at]))
        if relative is not None:
            stored[at] = int(clusters[of_packet[at], 1]) + relative
    if not (stored < 0).any():
        return table
    pts = stored * table.time_base
    # FFmpeg subtracts the delay of the codec.
    is_common = (stored >= 0) & np.isfinite(table.pts)
    if is_common.any():
        pts += np.median(table.pts[is_common] - pts[is_common])
    pts = np.where(is_first & np.isfinite(stored), pts, np.nan)
    # A picture is decoded before it and all later ones are shown.
    known = np.where(np.isfinite(pts), pts, np.inf)
    dts = np.minimum.accumulate(known[::-1])[::-1]
    return replace(table, pts=pts, dts=np.where(np.isfinite(dts), dts, np.nan))


def _relative_time(view: View, position: int) -> int | None:
    """Returns the time of the block at a position, relative to its cluster."""
    view.seek(position)
    data = view.read(_BLOCK_BYTES)
    if not data or not data[0]:
        return None
    at = 9 - data[0].bit_length()
    return int.from_bytes(data[at : at + 2], "big", signed=True) if len(data) >= at + 2 else None


def _clusters(view: View) -> Iterator[tuple[int, int]]:
    """Yields the position and the time of each cluster."""
    view.seek(0)
    data = b""
    while more := view.read(_CHUNK_BYTES):
        data += more
        start = view.tell() - len(data)
        after = 0
        for found in _CLUSTER.finditer(data):
            time = int.from_bytes(found[1][1:], "big")
            # FFmpeg adds 64 bits, so that a muxer may write a negative number.
            yield start + found.start(), time - _ONE_BITS if time >= _ONE_BITS // 2 else time
            after = found.end()
        data = data[max(after, len(data) - _MAX_HEADER_BYTES) :]

"""Reads what FFmpeg ignores in Matroska: times of blocks before zero, and checksums of clusters.

A block stores its time relative to its cluster, and the sum may be negative, as in a recording
whose zero is not its beginning. FFmpeg then gives no time, and counts those of the sound from zero:

    stored           -2.00  -1.98  ...  -0.02   0.00   0.02
    FFmpeg, sound     0.00   0.02  ...   1.98   0.00   0.02      beside pictures without a time

Some muxers, FFmpeg's among them, store a checksum for each cluster, a second or more of all
streams. It is compared if a codec has no checksum of its own and decodes whatever it gets.

RFC 9559, sections 5.1.3 (Cluster) and 10 (Block Structure); RFC 8794, section 11.3.1 (CRC-32).
"""

import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import av.container
import av.stream
import numpy as np
from numpy.typing import NDArray

from pipelines.media.container import MediaInput, view_of
from pipelines.media.file_view import View
from pipelines.media.formats import codec_of
from pipelines.media.packets import PacketScan, PacketTable

_FORMAT = "matroska,webm"
_CHUNK_BYTES = 1 << 20
_CLUSTER = re.compile(
    # ID, size, optional checksum, ID of the time, its size and value.
    rb"\x1f\x43\xb6\x75([\x80-\xff]|[\x40-\x7f].|[\x20-\x3f]..|[\x10-\x1f].{3}|[\x08-\x0f].{4}"
    rb"|[\x04-\x07].{5}|[\x02\x03].{6}|\x01.{7})(?:\xbf\x84(.{4}))?\xe7"
    rb"(\x81.|\x82..|\x83.{3}|\x84.{4}|\x85.{5}|\x86.{6}|\x87.{7}|\x88.{8})",
    re.DOTALL,
)
SILENT_CODECS = frozenset({"vp8", "vp9", "ffv1", "theora", "vorbis", "opus", "mp1", "mp2", "mp3"})
"""Codecs that decode much of what is damaged without a word; so does PCM."""
_ID_BYTES, _CHECKSUM_BYTES = 4, 6
_MAX_HEADER_BYTES = 40
_BLOCK_BYTES = 10
"""Number of the track, up to 8 bytes, and the relative time."""
_ONE_BITS = 1 << 64


@dataclass(frozen=True)
class Cluster:
    """A stretch of blocks."""

    position: int
    time: int
    """In units of the file."""
    checksum: int | None
    start: int
    """Position of what the checksum covers."""
    stop: int | None
    """Its end; None if the cluster does not state its size."""


def checked(
    source: MediaInput, container: av.container.InputContainer, scan: PacketScan
) -> PacketScan:
    """Returns a scan with the times that a Matroska file stores and the damage that its sums show.

    Args:
        source: The source, which is read again if there is a reason.
        container: The source as FFmpeg sees it.
        scan: All packets of the container.
    """
    if container.format.name != _FORMAT:
        return scan
    with ExitStack() as cleanup:
        view = view_of(source, cleanup)
        begins_before = any(_may_begin_before_zero(view, each) for each in scan.tables.values())
        is_silent = any(map(_is_silent, container.streams))
        if not begins_before and not is_silent:
            return scan
        clusters = list(_clusters(view, only_first=not begins_before))
        if not begins_before and clusters and clusters[0].checksum is not None:
            clusters = list(_clusters(view))
        if is_silent:
            limits = [*(cluster.position for cluster in clusters), sys.maxsize][1:]
            pairs = zip(clusters, limits, strict=True)
            num_damaged = sum(_is_damaged(view, cluster, limit) for cluster, limit in pairs)
            scan = replace(scan, num_damaged=scan.num_damaged + num_damaged)
        return _with_stored_times(view, scan, clusters) if begins_before else scan


def _is_silent(stream: av.stream.Stream) -> bool:
    # Without a decoder there is no codec context; the type stubs are wrong.
    codec: Any = stream.codec_context
    return bool(codec) and (
        codec_of(stream) in SILENT_CODECS or codec_of(stream).startswith("pcm_")
    )


def _is_damaged(view: View, cluster: Cluster, limit: int) -> bool:
    """Returns whether a cluster differs from its checksum, or reaches into the next one."""
    if cluster.checksum is None or cluster.stop is None:
        return False
    if cluster.stop > limit:
        return True
    view.seek(cluster.start)
    checksum, left = 0, cluster.stop - cluster.start
    while left > 0 and (data := view.read(min(left, _CHUNK_BYTES))):
        checksum = zlib.crc32(data, checksum)
        left -= len(data)
    # A file that was cut has lost the end of its last cluster, which counts elsewhere.
    return left == 0 and checksum != cluster.checksum


def _may_begin_before_zero(view: View, table: PacketTable) -> bool:
    if not len(table) or table.position[0] < 0:
        return False
    lacks_times = np.isnan(table.pts) & np.isnan(table.dts)
    return bool(lacks_times.any()) or (_relative_time(view, int(table.position[0])) or 0) < 0


def _with_stored_times(view: View, scan: PacketScan, clusters: Sequence[Cluster]) -> PacketScan:
    places = np.array([cluster.position for cluster in clusters], np.int64)
    times = np.array([cluster.time for cluster in clusters], np.int64)
    restored = {
        index: _restored(view, table, places, times) for index, table in scan.tables.items()
    }
    changed = frozenset(index for index in restored if restored[index] is not scan.tables[index])
    return replace(scan, tables=restored, restored=changed)


def _restored(
    view: View, table: PacketTable, places: NDArray[np.int64], times: NDArray[np.int64]
) -> PacketTable:
    """Returns a table with stored times, if one of them is negative."""
    stored = np.full(len(table), np.nan)
    of_packet = np.searchsorted(places, table.position) - 1
    # Packets of one block have one position; only the first one has the time of the block.
    is_first = np.diff(table.position, prepend=-1) != 0
    for at in np.flatnonzero((of_packet >= 0) & (table.position >= 0) & is_first):
        relative = _relative_time(view, int(table.position[at]))
        if relative is not None:
            stored[at] = int(times[of_packet[at]]) + relative
    if not (stored < 0).any():
        return table
    pts = stored * table.time_base
    # FFmpeg subtracts the delay of the codec.
    is_common = (stored >= 0) & np.isfinite(table.pts)
    if is_common.any():
        pts += np.median(table.pts[is_common] - pts[is_common])
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


def _clusters(view: View, *, only_first: bool = False) -> Iterator[Cluster]:
    """Yields the clusters in the order of the file."""
    view.seek(0)
    data = b""
    while more := view.read(_CHUNK_BYTES):
        data += more
        start = view.tell() - len(data)
        after = 0
        for found in _CLUSTER.finditer(data):
            yield _cluster(found, start)
            if only_first:
                return
            after = found.end()
        data = data[max(after, len(data) - _MAX_HEADER_BYTES) :]


def _cluster(found: re.Match[bytes], start: int) -> Cluster:
    size, checksum, time = found[1], found[2], int.from_bytes(found[3][1:], "big")
    bits = 7 * len(size)
    length = int.from_bytes(size, "big") & (1 << bits) - 1
    content = start + found.start() + _ID_BYTES + len(size)
    is_stated = length != (1 << bits) - 1
    return Cluster(
        position=start + found.start(),
        # FFmpeg adds 64 bits, so that a muxer may write a negative number.
        time=time - _ONE_BITS if time >= _ONE_BITS // 2 else time,
        checksum=None if checksum is None else int.from_bytes(checksum, "little"),
        start=content + _CHECKSUM_BYTES,
        stop=content + length if is_stated else None,
    )

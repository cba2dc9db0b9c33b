"""Yields the packets of a source in the order of decoding, from memory or from the source."""

import heapq
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO

import numpy as np
from av.container import InputContainer
from av.packet import Packet

from pipelines.media.container import MediaInput, open_source
from pipelines.media.file_view import View
from pipelines.media.formats import Formats
from pipelines.media.packets import MAX_HELD_BYTES, PacketScan, read_packets
from pipelines.media.streams.selection import keep_only
from pipelines.media.timeline import Timeline

MAX_SKEW_SECONDS = 5.0
"""Streams that lie further apart in the file are read from two positions at once."""

DuePacket = tuple[float, int, int, "Packet[Any]"]
"""The time when it is due, the index of its stream, its number in the stream, and the packet."""


def due_packets(
    source: MediaInput,
    formats: Formats,
    scan: PacketScan,
    timeline: Timeline,
    cleanup: ExitStack,
    *,
    probes_all: bool = False,
) -> Iterator[DuePacket]:
    """Yields the packets of both streams so that neither runs ahead of the other.

    Args:
        source: Opened again if its packets are not held.
        formats: Which containers and codecs are allowed.
        scan: The packets of the source.
        timeline: The timeline of these packets.
        cleanup: Closes the files that this opens.
        probes_all: As the source was opened.
    """
    if scan.held is not None:
        return _held(scan, timeline)
    indices = list(timeline.streams)
    if timeline.skew(scan) <= MAX_SKEW_SECONDS:
        container = cleanup.enter_context(open_source(source, formats, probes_all=probes_all))
        return _read_again(container, indices, timeline)
    # A file with all sound behind all pictures would fill the memory.
    streams = []
    for index in indices:
        view: Any = source if isinstance(source, str) else View(source)
        container = cleanup.enter_context(open_source(view, formats, probes_all=probes_all))
        streams.append(_read_again(container, [index], timeline))
    return heapq.merge(*streams, key=lambda due: due[:3])


def seekable(source: MediaInput, cleanup: ExitStack) -> MediaInput:
    """Copies a file object that cannot seek, because a source is read more than once."""
    if isinstance(source, str | int) or source.seekable():
        return source
    spool = tempfile.SpooledTemporaryFile(MAX_HELD_BYTES)  # noqa: SIM115 - closed by `cleanup`
    copy: Any = cleanup.enter_context(spool)
    shutil.copyfileobj(source, copy)
    found: BinaryIO = copy
    return found


def _held(scan: PacketScan, timeline: Timeline) -> Iterator[DuePacket]:
    held = scan.held
    assert held is not None
    indices = list(timeline.streams)
    lengths = [len(timeline.streams[index]) for index in indices]
    streams = np.repeat(indices, lengths)
    numbers = np.concatenate([np.arange(length) for length in lengths])
    due = np.concatenate([timeline.streams[index].due for index in indices])
    orders = np.concatenate([scan.tables[index].order for index in indices])
    for at in np.lexsort((numbers, streams, due)):
        order = orders[at]
        packet, held[order] = held[order], None  # frees its memory after decoding
        assert packet is not None
        yield float(due[at]), int(streams[at]), int(numbers[at]), packet


def _read_again(
    container: InputContainer, indices: list[int], timeline: Timeline
) -> Iterator[DuePacket]:
    keep_only(container, set(indices))
    numbers = dict.fromkeys(indices, 0)
    streams: list[Any] = [container.streams[index] for index in indices]
    for packet in read_packets(container, streams, []):
        index = packet.stream_index
        number = numbers[index]
        numbers[index] += 1
        due = timeline.streams[index].due
        if number < len(due):
            yield float(due[number]), index, number, packet

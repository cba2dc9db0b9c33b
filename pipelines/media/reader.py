"""Gives the packets of a source in the order in which they are due, from memory or read again."""

import heapq
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO

import av.stream
import numpy as np
from av.packet import Packet

from pipelines.media.container import Source, open_source
from pipelines.media.packets import PacketScan, read_packets
from pipelines.media.timeline import Timeline

MAX_SKEW_SECONDS = 5.0
"""Streams that lie further apart in the file are read side by side, from two places of it."""

DuePacket = tuple[float, int, int, "Packet[Any]"]
"""When it is due, index of its stream, its number in the stream, and the packet."""


def due_packets(
    source: Source,
    scan: PacketScan,
    timeline: Timeline,
    cleanup: ExitStack,
) -> Iterator[DuePacket]:
    """Gives the packets of the streams on a timeline, so that no stream runs ahead of the other.

    Args:
        source: It is opened again if its packets are not held.
        scan: What was found in it.
        timeline: What was decided from that.
        cleanup: Closes what is opened here.
    """
    if scan.held is not None:
        return _held(scan, timeline)
    indices = list(timeline.streams)
    if timeline.skew(scan) <= MAX_SKEW_SECONDS:
        return _read_again(source, indices, timeline, cleanup)
    # A file with all of the sound behind all of the picture would fill the memory.
    streams = [_read_again(source, [index], timeline, cleanup) for index in indices]
    return heapq.merge(*streams, key=lambda due: due[:3])


def _held(scan: PacketScan, timeline: Timeline) -> Iterator[DuePacket]:
    held = scan.held
    assert held is not None
    indices = list(timeline.streams)
    lengths = [len(timeline.streams[index]) for index in indices]
    streams = np.repeat(indices, lengths)
    numbers = np.concatenate([np.arange(length) for length in lengths])
    due = np.concatenate([timeline.streams[index].due for index in indices])
    orders = np.concatenate([scan.tables[index].order for index in indices])
    for place in np.lexsort((numbers, streams, due)):
        order = orders[place]
        packet, held[order] = held[order], None  # its memory is free once it is decoded
        assert packet is not None
        yield float(due[place]), int(streams[place]), int(numbers[place]), packet


def _read_again(
    source: Source, indices: list[int], timeline: Timeline, cleanup: ExitStack
) -> Iterator[DuePacket]:
    view: Any = source if isinstance(source, str) else _View(source)
    container = cleanup.enter_context(open_source(view))
    for stream in container.streams:
        if stream.index not in indices:
            stream.discard = av.stream.Discard.all
    numbers = dict.fromkeys(indices, 0)
    streams: list[Any] = [container.streams[index] for index in indices]
    for packet in read_packets(container, streams, []):
        index = packet.stream_index
        number = numbers[index]
        numbers[index] += 1
        due = timeline.streams[index].due
        if number < len(due):
            yield float(due[number]), index, number, packet


class _View(io.RawIOBase):
    """A file object with a position of its own, so that it can be read from two places."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self._file.seek(self._at)
        data = self._file.read(size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = self._at if whence == os.SEEK_CUR else 0
        if whence == os.SEEK_END:
            start = self._file.seek(0, os.SEEK_END)
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

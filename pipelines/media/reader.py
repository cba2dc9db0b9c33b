"""Gives the packets of a source in the order in which they are due, from memory or read again."""

import heapq
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO

import av.stream
import numpy as np
from av.container import InputContainer
from av.packet import Packet

from pipelines.media.container import Source, open_source
from pipelines.media.formats import Formats
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
    formats: Formats,
) -> Iterator[DuePacket]:
    """Gives the packets of the streams on a timeline, so that no stream runs ahead of the other.

    Args:
        source: It is opened again if its packets are not held.
        scan: What was found in it.
        timeline: What was decided from that.
        cleanup: Closes what is opened here.
        formats: As for `open_source`.
    """
    if scan.held is not None:
        return _held(scan, timeline)
    indices = list(timeline.streams)
    if timeline.skew(scan) <= MAX_SKEW_SECONDS:
        container = cleanup.enter_context(open_source(source, formats))
        return _read_again(container, indices, timeline)
    # A file with all of the sound behind all of the picture would fill the memory.
    streams = []
    for index in indices:
        view: Any = source if isinstance(source, str) else _View(source)
        container = cleanup.enter_context(open_source(view, formats))
        streams.append(_read_again(container, [index], timeline))
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
    container: InputContainer, indices: list[int], timeline: Timeline
) -> Iterator[DuePacket]:
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
    """A source with a position of its own, so that it can be read from two places.

    Not even duplicates of a descriptor have that: they share one position.
    """

    def __init__(self, file: int | BinaryIO) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if isinstance(self._file, int):
            left = max(0, os.fstat(self._file).st_size - self._at) if size < 0 else size
            data = os.pread(self._file, left, self._at)
        else:
            self._file.seek(self._at)
            data = self._file.read(size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = self._at if whence == os.SEEK_CUR else 0
        if whence == os.SEEK_END:
            if isinstance(self._file, int):
                start = os.fstat(self._file).st_size
            else:
                start = self._file.seek(0, os.SEEK_END)
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

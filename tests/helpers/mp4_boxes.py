"""Changes to the boxes of MP4 files that tests have written, for what PyAV cannot write."""

import struct
from collections.abc import Sequence
from pathlib import Path

CONTAINERS = {b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0, b"stsd": 8, b"avc1": 78}
"""Boxes that hold boxes, and the bytes before those."""


def find_boxes(data: bytes, path: Sequence[bytes], start: int = 0, stop: int | None = None):
    """Gives where each box of a path begins, and the boxes around it."""
    at, stop = start, len(data) if stop is None else stop
    while at + 8 <= stop:
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        size = size or stop - at
        if kind == path[0]:
            if len(path) == 1:
                yield at, []
            else:
                inner = at + 8 + CONTAINERS[kind]
                for found, around in find_boxes(data, path[1:], inner, at + size):
                    yield found, [at, *around]
        at += size


def set_display_matrix(path: Path, matrix: Sequence[float]) -> Path:
    """Writes a matrix of nine numbers (a b u c d v x y w) into the first track."""
    data = bytearray(path.read_bytes())
    at, _ = next(find_boxes(data, [b"moov", b"trak", b"tkhd"]))
    is_long = data[at + 8] == 1
    begin = at + (60 if is_long else 48)
    scales = [2**16, 2**16, 2**30] * 3
    fixed = [round(value * scale) for value, scale in zip(matrix, scales, strict=True)]
    data[begin : begin + 36] = struct.pack(">9i", *fixed)
    path.write_bytes(data)
    return path


def add_clean_aperture(path: Path, width: int, height: int, right: int, down: int) -> Path:
    """Declares that a part of the picture is shown, so far from its middle; `moov` must be last."""
    data = bytearray(path.read_bytes())
    at, around = next(
        find_boxes(data, [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"])
    )
    numbers = (width, 1, height, 1, right, 1, down, 1)
    box = struct.pack(">I4s8i", 40, b"clap", *numbers)
    (size,) = struct.unpack(">I", data[at : at + 4])
    for begin in (*around, at):
        (old,) = struct.unpack(">I", data[begin : begin + 4])
        data[begin : begin + 4] = struct.pack(">I", old + len(box))
    data[at + size : at + size] = box
    path.write_bytes(data)
    return path

"""Frames as JPEGs: each decodes by itself, so a window costs what it holds.

Pillow encodes and torchvision decodes, each the faster of the two at it (measured). Both call
libjpeg-turbo. Chroma is stored at half the resolution, as in the sources.
"""

import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LAYOUT = "a JPEG for each frame"
_START_OF_FRAME = frozenset({0xC0, 0xC1, 0xC2})
"""Markers of the sizes of baseline, extended and progressive JPEGs."""


def encode(frames: NDArray[np.uint8], quality: int, frame_rate: float) -> list[bytes]:
    """Encodes frames, with a quality of 1 to 95."""
    del frame_rate
    packets = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality)
        packets.append(file.getvalue())
    return packets


def decode(packets: Sequence[memoryview], part: range, out: NDArray[np.uint8]) -> None:
    """Decodes the frames of a part into an array.

    Raises:
        ValueError: If a JPEG is damaged or has another size than the array.
    """
    torch, torchvision_io = _libraries()
    for position, number in enumerate(part):
        packet = packets[number]
        # The size is read before decoding, which allocates what the JPEG asks for.
        if (found := _size(packet)) != out.shape[1:3]:
            raise ValueError(f"frame {number} is {_shown(found)}, not {_shown(out.shape[1:3])}")
        data = torch.from_numpy(np.array(packet))
        try:
            pixels = torchvision_io.decode_jpeg(data, mode=torchvision_io.ImageReadMode.RGB)
        except RuntimeError as error:
            raise ValueError(f"frame {number} is a damaged JPEG: {error}") from error
        out[position] = pixels.numpy().transpose(1, 2, 0)


@cache
def _libraries() -> tuple[Any, Any]:
    """Imports torch on first use: ingest workers never decode."""
    import torch
    import torchvision.io

    return torch, torchvision.io


def _size(jpeg: memoryview) -> tuple[int, int] | None:
    """Returns height and width of a JPEG from its headers, or None if it has none."""
    at = 2
    while at + 9 <= len(jpeg) and jpeg[at] == 0xFF:
        if jpeg[at + 1] in _START_OF_FRAME:
            height, width = np.frombuffer(jpeg, ">u2", 2, at + 5).tolist()
            return height, width
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return None


def _shown(size: tuple[int, ...] | None) -> str:
    return "no JPEG" if size is None else " x ".join(map(str, size))

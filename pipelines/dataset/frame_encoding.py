"""How the frames of a row are stored: the only module that encodes and decodes them.

`raw` frames are uint8 in C order. Encoded frames are packets, one for each frame, after a table of
their sizes:

    | num_frames x uint32, little-endian | packet 0 | packet 1 | ...
    | sizes of the packets in bytes      |

A packet is a JPEG (`jpeg_frames`) or the Annex B bytes of an H.264 picture (`h264_frames`). Shards
say in their schema which of the three they hold. A window of a clip decodes to the same pixels as
the same frames of the whole clip.

Shards may lie on storage that others write to, so no size in them is taken on trust: the bytes must
be those of `num_frames` packets, and each frame must be `height` x `width` before it is decoded.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.dataset import h264_frames, jpeg_frames

Encoding = Literal["raw", "jpeg", "h264"]
ENCODING_KEY = "xkd.frames_encoding"
"""Metadata key of a shard's schema; shards without it are raw."""
MAX_FRAME_PIXELS = 8192 * 8192
"""Pixels of an encoded frame at most, to bound the memory of decoding."""
WHOLE = slice(None)

Frames = NDArray[np.uint8]
"""Of shape (T, H, W, 3), RGB."""


class _Codec(Protocol):
    """A module that encodes frames as packets."""

    LAYOUT: str

    def encode(self, frames: Frames, quality: int, frame_rate: float) -> list[bytes]:
        """Returns one packet for each frame."""

    def decode(self, packets: Sequence[memoryview], part: range, out: Frames) -> None:
        """Decodes the frames of a part of all packets into an array.

        Raises:
            ValueError: If a packet is damaged or its frame has another size than the array.
        """


_CODECS: Mapping[str, _Codec] = {"jpeg": jpeg_frames, "h264": h264_frames}


def shard_schema(schema: pa.Schema, encoding: Encoding) -> pa.Schema:
    """Returns the schema of shards whose frames have an encoding."""
    if encoding == "raw":
        return schema
    layout = f"num_frames packet sizes (uint32, little-endian), then {_CODECS[encoding].LAYOUT}"
    added = {ENCODING_KEY: encoding, "xkd.frames": f"{layout}; null without picture"}
    return schema.with_metadata({**schema.metadata, **{k.encode(): v for k, v in added.items()}})


def encoding_of(schema: pa.Schema) -> str:
    """Returns the encoding that a shard's schema names."""
    return (schema.metadata or {}).get(ENCODING_KEY.encode(), b"raw").decode()


def encode_frames(frames: Frames, encoding: Encoding, quality: int, frame_rate: float) -> pa.Buffer:
    """Encodes the frames of a clip; raw frames ignore quality and rate."""
    if encoding == "raw":
        # pyarrow 25 never releases a memoryview.
        return pa.py_buffer(np.ascontiguousarray(frames))
    packets = _CODECS[encoding].encode(frames, quality, frame_rate)
    assert len(packets) == len(frames)
    sizes = np.array([len(packet) for packet in packets], "<u4")
    return pa.py_buffer(b"".join([sizes.tobytes(), *packets]))


def decode_frames(
    data: pa.Buffer | bytes, encoding: str, shape: tuple[int, int, int], part: slice = WHOLE
) -> Frames:
    """Decodes frames of a clip.

    Args:
        data: Value of the row.
        encoding: Encoding of its shard.
        shape: Number of frames, height and width, from the row.
        part: Frames to decode, with step 1.

    Returns:
        Frames of the part. Raw frames are a read-only view of `data`.

    Raises:
        ValueError: If the data is damaged or does not have this shape.
    """
    if encoding == "raw":
        pixels = np.frombuffer(data, np.uint8)
        if min(shape) < 1 or len(pixels) != int(np.prod(shape, dtype=np.int64)) * 3:
            raise ValueError(f"{len(pixels)} bytes are no raw frames of shape {_shown(shape)}")
        return pixels.reshape(*shape, 3)[part]
    if encoding not in _CODECS:
        raise ValueError(f"their encoding ({encoding}) is unknown to this version of XKD")
    if min(shape) < 1 or shape[1] * shape[2] > MAX_FRAME_PIXELS:
        raise ValueError(f"no frames have shape {_shown(shape)}")
    packets = list(_packets(memoryview(data).cast("B"), shape[0]))
    chosen = range(shape[0])[part]
    out = np.empty((len(chosen), *shape[1:], 3), np.uint8)
    _CODECS[encoding].decode(packets, chosen, out)
    return out


def _packets(data: memoryview, num_frames: int) -> Iterator[memoryview]:
    if len(data) < 4 * num_frames:
        raise ValueError(f"{len(data)} bytes are too few for {num_frames} encoded frames")
    ends = 4 * num_frames + np.cumsum(np.frombuffer(data, "<u4", num_frames), dtype=np.int64)
    if ends[-1] != len(data):
        raise ValueError(f"{len(data)} bytes are not those of {num_frames} packets")
    begin = 4 * num_frames
    for end in ends.tolist():
        yield data[begin:end]
        begin = end


def _shown(shape: tuple[int, int, int]) -> str:
    return " x ".join(str(int(size)) for size in shape)

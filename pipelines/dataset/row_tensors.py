"""Reads the tensors of rows out of a table of a shard. All readers of frames come through here."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.dataset.frame_encoding import WHOLE, decode_frames, encoding_of
from pipelines.errors import UserError
from pipelines.redaction import one_line


def read_frames(
    table: pa.Table,
    row: int,
    *,
    shard: str,
    shape: tuple[int, int, int] | None = None,
    part: slice = WHOLE,
) -> NDArray[np.uint8] | None:
    """Returns frames of a row, of shape (T, H, W, 3), or None if it has no picture.

    Args:
        table: Rows of a shard, with their `frames`.
        row: Number of the row in the table.
        shard: Path of the shard, for messages.
        shape: Number of frames, height and width; by default from the columns of the table.
        part: Frames to read.

    Raises:
        UserError: If the frames are damaged or do not have the shape of the row.
    """
    buffer = _buffer(table, "frames", row)
    if buffer is None:
        return None
    if shape is None:
        num_frames, height, width = (
            table[name][row].as_py() for name in ("num_frames", "height", "width")
        )
        shape = num_frames, height, width
    try:
        return decode_frames(buffer, encoding_of(table.schema), shape, part)
    except ValueError as error:
        raise UserError(
            f"shard ({shard}): frames of a clip cannot be read: {one_line(error)}; delete the "
            "shard and run the same ingest again"
        ) from error


def read_waveform(table: pa.Table, row: int) -> NDArray[np.int16] | None:
    """Returns the samples of a row, or None if it has no sound."""
    buffer = _buffer(table, "waveform", row)
    return None if buffer is None else np.frombuffer(buffer, "<i2")


def _buffer(table: pa.Table, column: str, row: int) -> pa.Buffer | None:
    """Returns the bytes of a row without the copy that a pyarrow scalar makes."""
    value = table[column].slice(row, 1).chunk(0)
    if value.null_count:
        return None
    _, offsets, data = value.buffers()
    begin, end = np.frombuffer(offsets, np.int64, 2, 8 * value.offset).tolist()
    return data.slice(begin, end - begin)

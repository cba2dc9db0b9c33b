"""The Arrow schemas of the clip dataset.

Tensors are raw bytes, little-endian and in C order: `frames` is uint8 of shape (num_frames, height,
width, 3), and `waveform` is int16 of shape (num_samples,). Shards do not use Ray's tensor type: it
reads many times slower, and its metadata has allowed code execution.
"""

import hashlib
from collections.abc import Sequence

import pyarrow as pa

from pipelines.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
INDEX_FILE = "index.arrow"
CLIPS_FOLDER = "clips"
REJECTS_FOLDER = "rejects"

_METADATA = {
    "xkd.format_version": str(FORMAT_VERSION),
    "xkd.frames": "uint8, C order, shape (num_frames, height, width, 3), RGB; null without picture",
    "xkd.waveform": "int16 little-endian, shape (num_samples,), mono; null without sound",
}

STRETCH = (
    pa.field("stretch_start_seconds", pa.float64()),
    pa.field("stretch_end_seconds", pa.float64()),
)
"""Columns from which a later run detects that the list names another stretch of a source."""

ADDED = (
    # Whether the frames were mirrored before they were turned by `rotation`.
    pa.field("is_mirrored", pa.bool_()),
    # Whether the source has such a stream, decoded or not.
    pa.field("declares_picture", pa.bool_()),
    pa.field("declares_sound", pa.bool_()),
    # Repairs of the clip's clock; see `ClockRepairs`.
    pa.field("clock_leaps", pa.int32()),
    pa.field("sound_gaps", pa.int32()),
    pa.field("bridged_gaps", pa.int32()),
    pa.field("rebased_clocks", pa.int32()),
    pa.field("held_picture", pa.int32()),
    pa.field("picture_gaps", pa.int32()),
)
"""Columns that older shards lack; they read as null."""

CLIPS = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_hash", pa.string(), nullable=False),
        pa.field("start_seconds", pa.float64(), nullable=False),
        pa.field("duration_seconds", pa.float64(), nullable=False),
        pa.field("frames", pa.large_binary()),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("frame_rate", pa.float64(), nullable=False),
        pa.field("waveform", pa.large_binary()),
        pa.field("num_samples", pa.int32(), nullable=False),
        pa.field("sample_rate", pa.int32(), nullable=False),
        pa.field("has_audio", pa.bool_(), nullable=False),
        # `label` is null if there are several labels; `labels` holds them all.
        pa.field("label", pa.string()),
        pa.field("labels", pa.list_(pa.string())),
        pa.field("split", pa.string()),
        pa.field("group", pa.string()),
        # The stretch of the source that the list names; null where it is open.
        *STRETCH,
        # Properties of the source, from the decoder.
        pa.field("container", pa.string()),
        pa.field("video_codec", pa.string()),
        pa.field("audio_codec", pa.string()),
        pa.field("native_width", pa.int32()),
        pa.field("native_height", pa.int32()),
        pa.field("native_rate", pa.float64()),
        pa.field("rotation", pa.int32()),
        pa.field("stream_offset_seconds", pa.float64()),
        pa.field("decode_errors", pa.int32(), nullable=False),
        *ADDED,
    ],
    metadata=_METADATA,
)
"""Schema of accepted clips; one row is one segment of a source."""

REJECTS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_hash", pa.string()),
        pa.field("byte_size", pa.int64()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        *STRETCH,
    ],
    metadata={"xkd.format_version": str(FORMAT_VERSION)},
)
"""Schema of rejects; one row is one source without clips, and the reason."""


def check_version(what: str, version: object) -> None:
    """Checks that this version reads a format.

    Raises:
        UserError: If it does not.
    """
    if version == FORMAT_VERSION:
        return
    way_out = "ingest the media again into another output"
    if isinstance(version, int) and version > FORMAT_VERSION:
        way_out = "it was written by a newer XKD, which reads it"
    raise UserError(
        f"{what} has format_version {version!r}, but must have {FORMAT_VERSION}: {way_out}"
    )


def check_columns(what: str, there: pa.Schema, needed: pa.Schema) -> None:
    """Checks that a file has the columns and types of a schema.

    The file may have further columns, and may lack columns of `ADDED`.

    Raises:
        UserError: If a column is missing or has another type.
    """
    version = (there.metadata or {}).get(b"xkd.format_version", b"none").decode()
    check_version(what, int(version) if version.isdigit() else version)
    wrong = []
    for field in needed:
        at = there.get_field_index(field.name)
        if at < 0 and field in ADDED:
            continue
        if at < 0:
            wrong.append(f"{field.name} is missing")
        elif there.field(at).type != field.type:
            wrong.append(f"{field.name} is {there.field(at).type} and must be {field.type}")
    if wrong:
        raise UserError(f"{what} is no shard of this format: {'; '.join(wrong)}")


def with_added(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Selects columns of a table, with nulls for missing columns of `ADDED`."""
    for field in ADDED:
        if field.name in columns and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(list(columns))


def clip_id(source_hash: str, start_seconds: float) -> str:
    """Derives the id of a segment from the content of its source and its start, not its path."""
    key = f"{source_hash}:{round(start_seconds * 1_000_000)}"
    return hashlib.sha256(key.encode()).hexdigest()[:32]


STATE_FOLDER = ".ingest"

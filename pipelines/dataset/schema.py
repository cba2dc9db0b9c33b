"""The Arrow schemas of the clip dataset, in one place.

Tensors are raw bytes: `frames` is uint8 of shape (num_frames, height, width, 3), `waveform` int16
of shape (num_samples,), both little-endian and in C order. Ray's tensor type is not used on disk:
it reads many times slower, and its metadata has been a way to run code.
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
"""With these a later run sees that a list names another stretch, of clips and of rejects."""

ADDED = (
    # Whether left and right were exchanged, before the turn by `rotation`.
    pa.field("is_mirrored", pa.bool_()),
    # Whether the source has such a stream at all, be it decoded or not.
    pa.field("declares_picture", pa.bool_()),
    pa.field("declares_sound", pa.bool_()),
    # How the clock of this clip was mended: see `ClockRepairs`.
    pa.field("clock_leaps", pa.int32()),
    pa.field("sound_gaps", pa.int32()),
    pa.field("bridged_gaps", pa.int32()),
    pa.field("rebased_clocks", pa.int32()),
)
"""Columns that shards lack which were written before there were these; they read as null."""

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
        # The one label, and all of them: of several there is no one.
        pa.field("label", pa.string()),
        pa.field("labels", pa.list_(pa.string())),
        pa.field("split", pa.string()),
        pa.field("group", pa.string()),
        # The stretch of the source that the list is about; null where it is open.
        *STRETCH,
        # What the decoder saw of the source.
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
"""One row is one segment of a source."""

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
"""One row is one source that gave no clips, and why."""


def check_version(what: str, version: object) -> None:
    """Makes sure that this code knows a format.

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
    """Makes sure that a file has the columns of a schema, of the same types.

    Raises:
        UserError: If it has not; columns that come on top, or of `ADDED` lack, are no harm.
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
    """Brings a table to these columns, with nulls for those of `ADDED` that it lacks."""
    for field in ADDED:
        if field.name in columns and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(list(columns))


def clip_id(source_hash: str, start_seconds: float) -> str:
    """Names a segment by what its source holds and where it starts, not by the file's name."""
    key = f"{source_hash}:{round(start_seconds * 1_000_000)}"
    return hashlib.sha256(key.encode()).hexdigest()[:32]


STATE_FOLDER = ".ingest"

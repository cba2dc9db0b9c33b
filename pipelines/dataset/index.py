"""The index of a clip dataset: the small columns of every row, in the order of the shards.

An ingest writes it to `index.arrow` as one uncompressed record batch. Processes map the file into
memory and share its pages, so opening ten million clips takes as long as opening ten. If the file
is missing or belongs to other clips, the index is read from the shards.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.dataset.schema import CLIPS, CLIPS_FOLDER, INDEX_FILE, STRETCH, check_columns
from pipelines.dataset.shards import READ_THREADS, open_parquet
from pipelines.dataset.text_column import TextColumn, array_of
from pipelines.files import replacing
from pipelines.filesystems import filesystem_of
from pipelines.paths import is_uri
from pipelines.redaction import one_line
from pipelines.storage import AnyPath

logger = logging.getLogger(__name__)

_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.large_string()),
        pa.field("source", pa.dictionary(pa.int32(), pa.large_string())),
        pa.field("label", pa.dictionary(pa.int32(), pa.large_string())),
        pa.field("split", pa.dictionary(pa.int32(), pa.large_string())),
        pa.field("start_seconds", pa.float64()),
        pa.field("num_frames", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("num_samples", pa.int32()),
        pa.field("has_audio", pa.uint8()),
        pa.field("group", pa.int32()),
        pa.field("source_number", pa.int32()),
    ]
)
_KEY = b"xkd.index"
"""Metadata key that identifies the dataset of an index."""
_VERSION = 1


@dataclass(frozen=True, eq=False)
class ClipIndex:
    """The small columns of every row, as read-only arrays."""

    clip_id: TextColumn
    source: TextColumn
    label: TextColumn
    split: TextColumn
    start_seconds: NDArray[np.float64]
    num_frames: NDArray[np.int32]
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    num_samples: NDArray[np.int32]
    has_audio: NDArray[np.bool_]
    group: NDArray[np.int32]
    """Row group of each row, numbered across all shards."""
    source_number: NDArray[np.int32]
    """Source of each row, numbered in the order of first rows. A source is the content of a file
    and a stretch of it."""
    shards: tuple[str, ...]
    """Paths of the clip shards, in the order of the rows."""
    group_ends: NDArray[np.int64]
    """Cumulative number of row groups at the end of each shard."""

    def __len__(self) -> int:
        return len(self.group)

    @cached_property
    def row_in_group(self) -> NDArray[np.int64]:
        """Position of each row in its row group."""
        first_rows = np.flatnonzero(np.diff(self.group, prepend=-1))
        return np.arange(len(self)) - first_rows[self.group]

    @cached_property
    def order_sha256(self) -> str:
        """Hash of the clip ids in the order of the rows, and of where row groups end.

        Datasets of the same clips may differ in it: an ingest that adds to a dataset makes other
        shards than one that has all sources at once.
        """
        digest = hashlib.sha256(np.flatnonzero(np.diff(self.group)).astype("<i8").tobytes())
        ids = array_of(self.clip_id)
        _, offsets, text = ids.buffers()
        first, stop = np.frombuffer(offsets, "<i8")[[ids.offset, ids.offset + len(ids)]].tolist()
        digest.update(memoryview(text or b"")[first:stop])  # ids have one length
        return digest.hexdigest()

    def shard_of_group(self, group: int) -> tuple[str, int]:
        """Returns the shard of a row group and its number in that shard."""
        shard = int(np.searchsorted(self.group_ends, group, side="right"))
        return self.shards[shard], group - (int(self.group_ends[shard - 1]) if shard else 0)

    def rows_of_group(self, group: int) -> tuple[int, int]:
        """Returns the first row of a row group and the first row of the next one."""
        first, stop = np.searchsorted(self.group, [group, group + 1])
        return int(first), int(stop)


def read_shards(shards: Sequence[str]) -> ClipIndex:
    """Reads the index from the shards.

    Raises:
        UserError: If a shard is damaged or missing.
    """
    with ThreadPoolExecutor(READ_THREADS) as pool:
        parts = list(pool.map(_read_small, shards))
    tables = [table for table, _ in parts]
    sizes = np.array([size for _, sizes in parts for size in sizes], np.int64)
    rows = pa.concat_tables(tables) if tables else _empty_rows()
    columns = {
        **{name: rows[name] for name in _SCHEMA.names if name in rows.schema.names},
        "group": np.repeat(np.arange(len(sizes)), sizes).astype(np.int32),
        "source_number": _source_numbers(rows),
    }
    batch = pa.RecordBatch.from_arrays(
        [_to_column(columns[field.name], field.type) for field in _SCHEMA], schema=_SCHEMA
    )
    num_groups = np.array([len(sizes) for _, sizes in parts], np.int64)
    return _index_of(batch, tuple(shards), np.cumsum(num_groups))


def write_index(folder: AnyPath, dataset_id: str, index: ClipIndex) -> None:
    """Writes the index of a dataset to a folder atomically."""
    arrays = [
        array_of(getattr(index, field.name)).cast(field.type, safe=False) for field in _SCHEMA
    ]
    clips = f"{folder / CLIPS_FOLDER}/"
    key = {
        "version": _VERSION,
        "dataset_id": dataset_id,
        "shards": [shard.removeprefix(clips) for shard in index.shards],
        "group_ends": index.group_ends.tolist(),
    }
    schema = _SCHEMA.with_metadata({_KEY: json.dumps(key)})
    with (
        replacing(folder / INDEX_FILE) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, schema) as writer,
    ):
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def read_index(dataset: str, clips_folder: str, manifest: Mapping[str, Any]) -> ClipIndex | None:
    """Opens the index file of a dataset; returns None if no index matches.

    Args:
        dataset: Folder or URI of the dataset.
        clips_folder: Folder or URI of its shards.
        manifest: Manifest of the dataset.
    """
    location = f"{dataset}/{INDEX_FILE}"
    try:
        reader = pa.ipc.open_file(_open(location))
        key = json.loads((reader.schema.metadata or {}).get(_KEY, b"{}"))
        is_same = key.get("dataset_id") == manifest["dataset_id"]
        if not is_same or key["version"] != _VERSION or reader.num_record_batches != 1:
            return None
        batch = reader.get_batch(0)
        batch.validate()
        if not batch.schema.equals(_SCHEMA) or len(batch) != manifest["clips"]:
            return None
        shards = tuple(f"{clips_folder}/{name}" for name in key["shards"])
        return _index_of(batch, shards, np.array(key["group_ends"], np.int64))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        logger.warning("index (%s) cannot be read, the shards are: %s", location, one_line(error))
        return None


def _open(location: str) -> pa.NativeFile | pa.Buffer:
    """Opens an index; maps a local file into memory and reads a remote one."""
    if not is_uri(location):
        return pa.memory_map(location)
    filesystem, path = filesystem_of(location)
    with filesystem.open_input_file(path) as file:
        return file.read_buffer()


def _index_of(
    batch: pa.RecordBatch, shards: tuple[str, ...], group_ends: NDArray[np.int64]
) -> ClipIndex:
    columns = {name: _from_column(batch.column(name)) for name in _SCHEMA.names}
    columns["has_audio"] = columns["has_audio"].view(np.bool_)
    assert columns.keys() <= {field.name for field in fields(ClipIndex)}
    return ClipIndex(**columns, shards=shards, group_ends=group_ends)


def _read_small(shard: str) -> tuple[pa.Table, list[int]]:
    """Reads the columns of the index and the number of rows in each row group."""
    with open_parquet(shard) as file:
        check_columns(f"shard ({shard})", file.schema_arrow, CLIPS)
        groups = range(file.num_row_groups)
        sizes = [file.metadata.row_group(i).num_rows for i in groups]
        return file.read(columns=_empty_rows().schema.names, use_threads=False), sizes


def _empty_rows() -> pa.Table:
    """Returns an empty table of the shard columns that the index needs."""
    names = [name for name in _SCHEMA.names if name in CLIPS.names]
    names += ["source_hash", *(field.name for field in STRETCH)]
    return pa.schema([CLIPS.field(name) for name in names]).empty_table()


def _source_numbers(table: pa.Table) -> NDArray[np.int32]:
    """Numbers the sources of a table's rows by content, so a renamed file keeps its number."""
    hashes = pc.unique(table["source_hash"])
    codes = pc.index_in(table["source_hash"], value_set=hashes)
    # -1 marks an open end; no time equals it.
    ends = [pc.fill_null(table[field.name], -1.0) for field in STRETCH]
    keys = [column.to_numpy() for column in (codes, *ends)]
    order = np.lexsort(keys)
    is_new = np.zeros(len(order), bool)
    for key in keys:
        is_new[1:] |= key[order[1:]] != key[order[:-1]]
    numbers = np.cumsum(is_new)[np.argsort(order)]
    _, first_rows, numbers = np.unique(numbers, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first_rows))[numbers].astype(np.int32)


def _to_column(values: Any, kind: pa.DataType) -> pa.Array:
    """Converts values to one array of an index column."""
    if isinstance(values, np.ndarray):
        return pa.array(values, kind)
    if pa.types.is_dictionary(kind):
        text = pc.fill_null(values.cast(pa.large_string()), "")
        return _combined(text.dictionary_encode().unify_dictionaries())
    if pa.types.is_uint8(kind):
        values = values.cast(pa.uint8())
    return _combined(values.cast(kind))


def _combined(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    # pyarrow returns a chunked array for no chunks, or for several chunks with equal dictionaries.
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def _from_column(array: pa.Array) -> Any:
    is_text = pa.types.is_dictionary(array.type) or pa.types.is_large_string(array.type)
    return TextColumn(array) if is_text else array.to_numpy()

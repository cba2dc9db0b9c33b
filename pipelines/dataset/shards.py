"""Writing and reading shards of Parquet, which are either whole or not there.

A shard is written under a temporary name, row group by row group, and renamed when it is complete;
Ray Data's own writer is not atomic. Workers write in a folder that belongs to their run. The next
run removes it before anything else, so a worker that outlived its run has nothing left to rename
and cannot add a shard that nobody planned.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.dataset.schema import CLIPS, check_columns, with_added
from pipelines.errors import UserError
from pipelines.files import commit, temporary_name
from pipelines.filesystems import filesystem_of
from pipelines.paths import is_uri
from pipelines.redaction import one_line

AGAIN = "run the same ingest again"
READ_THREADS = 8
"""Shards that are asked at a time; what a bucket needs most is patience."""
MAX_GROUP_BYTES = 64_000_000
"""A row group ends here even if it has few rows, so that memory does not follow their size."""


class ShardWriter:
    """Writes one shard; nothing is visible before `commit`, nothing remains after `discard`."""

    def __init__(
        self,
        place: Path,
        schema: pa.Schema,
        *,
        rows_per_group: int,
        scratch: Path | None = None,
    ) -> None:
        """Begins a shard.

        Args:
            place: Where it will be.
            schema: Of its rows.
            rows_per_group: Rows of a row group.
            scratch: Folder on the same disk where it is until then; by default beside its place.
        """
        self._place = place
        self._schema = schema
        self._rows_per_group = rows_per_group
        self._temporary = temporary_name(place if scratch is None else scratch / place.name)
        self._waiting: list[Mapping[str, Any]] = []
        self._waiting_bytes = 0
        binary = [field.name for field in schema if pa.types.is_large_binary(field.type)]
        small = [name for name in schema.names if name not in binary]
        # LZ4 of raw bytes without a dictionary: cheapest to write and to read of what was measured.
        self._writer = pq.ParquetWriter(
            self._temporary,
            schema,
            compression="lz4",
            use_dictionary=small,
            write_statistics=small,
            # A group is one page; a page for each value is dearer to read by a third (measured).
            data_page_size=2 * MAX_GROUP_BYTES,
        )

    def add(self, row: Mapping[str, Any]) -> bool:
        """Takes a row; says whether rows went to the file, from where they cannot be taken back."""
        self._waiting.append(row)
        self._waiting_bytes += _num_bytes(row)
        is_full = len(self._waiting) >= self._rows_per_group
        if is_full or self._waiting_bytes >= MAX_GROUP_BYTES:
            self._flush()
            return True
        return False

    def drop_last(self, num_rows: int) -> None:
        """Takes back rows that did not go to the file yet."""
        for _ in range(num_rows):
            self._waiting_bytes -= _num_bytes(self._waiting.pop())

    def commit(self) -> None:
        """Makes the shard visible."""
        self._flush()
        self._writer.close()
        commit(self._temporary, self._place)

    def discard(self) -> None:
        """Removes what was written."""
        with contextlib.suppress(OSError):  # closing writes, and the disk may be full
            self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._waiting:
            columns = [
                _column([row[field.name] for row in self._waiting], field.type)
                for field in self._schema
            ]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._waiting, self._waiting_bytes = [], 0


@contextmanager
def open_parquet(place: str) -> Iterator[pq.ParquetFile]:
    """Opens a shard to be read; a local one is mapped into memory.

    Raises:
        UserError: If it cannot be read, then or while it is used.
    """
    try:
        with _parquet_file(place) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"shard ({place}) cannot be read: {one_line(error)}; if it is damaged, delete it and "
            f"{AGAIN}"
        ) from error


def read_groups(shard: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Gives columns of a shard, a row group at a time.

    Raises:
        UserError: If it cannot be read.
    """
    with open_parquet(shard) as file:
        groups = range(file.num_row_groups)
    for group in groups:
        with open_parquet(shard) as file:
            table = file.read_row_group(group, columns=list(columns), use_threads=False)
        yield table


def read_columns(shard: str, columns: Sequence[str]) -> pa.Table:
    """Reads columns of all rows of a shard of clips; those that an older shard lacks are null.

    Raises:
        UserError: If it is none that this code can read.
    """
    with open_parquet(shard) as file:
        check_columns(f"shard ({shard})", file.schema_arrow, CLIPS)
        there = [name for name in columns if name in file.schema_arrow.names]
        return with_added(file.read(columns=there, use_threads=False), columns)


def _parquet_file(place: str) -> pq.ParquetFile:
    if not is_uri(place):
        return pq.ParquetFile(place, memory_map=True)
    filesystem, path = filesystem_of(place)
    return pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True)


def _num_bytes(row: Mapping[str, Any]) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, bytes | pa.Buffer))


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """An array of values; large ones stay where they are, each a chunk."""
    if not pa.types.is_large_binary(kind):
        return pa.array(values, kind)
    return pa.chunked_array([_chunk(value) for value in values], kind)


def _chunk(value: bytes | pa.Buffer | None) -> pa.Array:
    if value is None:
        return pa.nulls(1, pa.large_binary())
    data = pa.py_buffer(value)
    offsets = pa.py_buffer(np.array([0, data.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])

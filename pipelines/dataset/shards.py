"""The writer and readers of Parquet shards, which appear atomically.

The writer writes row groups under a temporary name and renames the complete shard, because Ray
Data's own writer is not atomic. Workers write to a folder of their run. The next run first removes
this folder, so a worker that outlives its run has nothing to rename and cannot add a stray shard.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.dataset.schema import CLIPS, check_columns, with_added
from pipelines.errors import UserError
from pipelines.files import replacing
from pipelines.filesystems import filesystem_of, list_files
from pipelines.paths import is_uri
from pipelines.redaction import one_line
from pipelines.storage import AnyPath

AGAIN = "run the same ingest again"
READ_THREADS = 8
"""Number of shards read concurrently, to hide the latency of a bucket."""
MAX_GROUP_BYTES = 64_000_000
"""Size at which a row group ends regardless of its rows, to bound memory, in bytes."""


class _DiscardedError(Exception):
    """A shard that is not to appear."""


class ShardWriter:
    """Writes one shard, which `commit` makes visible and `discard` removes."""

    def __init__(
        self,
        path: AnyPath,
        schema: pa.Schema,
        *,
        rows_per_group: int,
        scratch: AnyPath | None = None,
    ) -> None:
        """Begins a shard.

        Args:
            path: Final path of the shard.
            schema: Schema of its rows.
            rows_per_group: Number of rows in a row group.
            scratch: Folder of the temporary file, on the same disk; default: that of `path`.
        """
        self._schema = schema
        self._rows_per_group = rows_per_group
        self._file = ExitStack()
        self._temporary = self._file.enter_context(replacing(path, scratch))
        self._waiting: list[Mapping[str, Any]] = []
        self._waiting_bytes = 0
        binary = [field.name for field in schema if pa.types.is_large_binary(field.type)]
        small = [name for name in schema.names if name not in binary]
        # LZ4 makes raw frames 18 % smaller and 3.5 times as slow to read (measured), and encoded
        # ones no smaller.
        compression = {name: "none" if name in binary else "lz4" for name in schema.names}
        self._writer = pq.ParquetWriter(
            self._temporary,
            schema,
            compression=compression,
            use_dictionary=small,
            write_statistics=small,
            # A column chunk is one page; a page per value reads a third slower (measured).
            data_page_size=2 * MAX_GROUP_BYTES,
        )

    def add(self, row: Mapping[str, Any]) -> bool:
        """Adds a row; returns whether rows were written, after which they cannot be dropped."""
        self._waiting.append(row)
        self._waiting_bytes += _num_bytes(row)
        is_full = len(self._waiting) >= self._rows_per_group
        if is_full or self._waiting_bytes >= MAX_GROUP_BYTES:
            self._flush()
            return True
        return False

    def drop_last(self, num_rows: int) -> None:
        """Drops the last rows, which must not have been written yet."""
        for _ in range(num_rows):
            self._waiting_bytes -= _num_bytes(self._waiting.pop())

    def commit(self) -> None:
        """Makes the shard visible."""
        self._flush()
        self._writer.close()
        self._file.close()

    def discard(self) -> None:
        """Removes the temporary file."""
        with suppress(OSError):  # closing writes, and the disk may be full
            self._writer.close()
        with suppress(_DiscardedError):
            self._file.__exit__(_DiscardedError, _DiscardedError(), None)

    def _flush(self) -> None:
        if self._waiting:
            columns = [
                _column([row[field.name] for row in self._waiting], field.type)
                for field in self._schema
            ]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._waiting, self._waiting_bytes = [], 0


def shard_names(folder: AnyPath) -> list[str]:
    """Returns the shards in a folder and its subfolders, relative to it and sorted.

    Small datasets have all shards in the folder itself, see `ingest.plan`.
    """
    if isinstance(folder, Path):
        files = [*folder.glob("*.parquet"), *folder.glob("*/*.parquet")]
        return sorted(file.relative_to(folder).as_posix() for file in files if is_shard(file.name))
    if not folder.is_dir():
        return []
    begin = len(f"{folder}/")
    return sorted(entry.uri[begin:] for entry in list_files(str(folder)) if is_shard(entry.uri))


def is_shard(name: str) -> bool:
    """Whether a file is a shard by its name: other programs leave hidden files, as `._x.parquet`.

    >>> is_shard("clips/0a1/0a1b.parquet"), is_shard("clips/._0a1b.parquet")
    (True, False)
    """
    return name.endswith(".parquet") and not name.rpartition("/")[2].startswith(".")


@contextmanager
def open_parquet(location: str) -> Iterator[pq.ParquetFile]:
    """Opens a shard for reading; maps a local file into memory.

    Raises:
        UserError: If it cannot be read, on opening or inside the `with` block.
    """
    try:
        with parquet_file(location) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"shard ({location}) cannot be read: {one_line(error)}; if it is damaged, "
            f"delete it and {AGAIN}"
        ) from error


def read_groups(shard: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yields columns of a shard, one row group at a time.

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
    """Reads columns of a clip shard; columns that an older shard lacks are null.

    Raises:
        UserError: If the shard cannot be read.
    """
    with open_parquet(shard) as file:
        check_columns(f"shard ({shard})", file.schema_arrow, CLIPS)
        there = [name for name in columns if name in file.schema_arrow.names]
        return with_added(file.read(columns=there, use_threads=False), columns)


def parquet_file(location: str) -> pq.ParquetFile:
    """Opens a Parquet file; maps a local one into memory."""
    if not is_uri(location):
        return pq.ParquetFile(location, memory_map=True)
    filesystem, path = filesystem_of(location)
    return pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True)


def _num_bytes(row: Mapping[str, Any]) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, bytes | pa.Buffer))


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Builds an array of values; large values become chunks without a copy."""
    if not pa.types.is_large_binary(kind):
        return pa.array(values, kind)
    return pa.chunked_array([one_value(value) for value in values], kind)


def one_value(value: bytes | pa.Buffer | None) -> pa.Array:
    """Returns an array of one large binary, which shares the memory of the value."""
    if value is None:
        return pa.nulls(1, pa.large_binary())
    data = pa.py_buffer(value)
    offsets = pa.py_buffer(np.array([0, data.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])

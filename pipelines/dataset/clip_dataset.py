"""Reading a clip dataset: what it holds, and its rows.

The format is in `schema`; plain pyarrow and NumPy read it as well:

    table = pyarrow.parquet.read_table("DATASET/clips")
    row = table.slice(0, 1).to_pylist()[0]
    frames = numpy.frombuffer(row["frames"], "uint8")
    frames = frames.reshape(row["num_frames"], row["height"], row["width"], 3)
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.dataset.schema import (
    CLIPS,
    CLIPS_FOLDER,
    MANIFEST,
    REJECTS_FOLDER,
    STATE_FOLDER,
    STRETCH,
    check_columns,
    check_version,
)
from pipelines.errors import UserError
from pipelines.filesystems import filesystem_of, is_folder, list_files
from pipelines.paths import is_uri
from pipelines.redaction import one_line

_AGAIN = "run the same ingest again"
_READ_THREADS = 8
"""Shards that are asked at a time; what a bucket needs most is patience."""
_INDEX_COLUMNS = [
    "clip_id",
    "source",
    "start_seconds",
    "label",
    "split",
    "num_frames",
    "height",
    "width",
    "num_samples",
    "has_audio",
]
_SOURCE_COLUMNS = ["source_hash", *(field.name for field in STRETCH)]
"""What a source is: a file that was renamed is the same one."""


@dataclass(frozen=True)
class ClipIndex:
    """All that is small of every row, as arrays; missing text is empty."""

    clip_id: NDArray[np.str_]
    source: NDArray[np.str_]
    start_seconds: NDArray[np.float64]
    label: NDArray[np.str_]
    split: NDArray[np.str_]
    num_frames: NDArray[np.int32]
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    num_samples: NDArray[np.int32]
    has_audio: NDArray[np.bool_]
    group: NDArray[np.int64]
    """Row group of each row, counted over all shards."""
    row_in_group: NDArray[np.int64]
    source_number: NDArray[np.int64]
    """Equal for the rows of one source: the same bytes, and the same stretch of them."""


@dataclass(frozen=True)
class Clip:
    """One row; a stream that the segment lacks is None."""

    clip_id: str
    label: str
    frames: NDArray[np.uint8] | None
    """T H W 3."""
    waveform: NDArray[np.int16] | None


@dataclass(frozen=True)
class ClipDataset:
    """A complete clip dataset; see `open`."""

    path: str
    """A folder, or the URI of one."""
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "ClipDataset":
        """Opens the dataset in a folder, which may be a URI.

        Raises:
            UserError: If there is none, or one that this code cannot read.
        """
        folder = str(path).rstrip("/")
        try:
            filesystem, place = filesystem_of(folder)
            with filesystem.open_input_file(f"{place}/{MANIFEST}") as file:
                manifest = json.loads(file.read())
        except FileNotFoundError as error:
            raise UserError(f"dataset ({path}) is no clip dataset: {_missing(folder)}") from error
        except (OSError, ValueError) as error:
            raise UserError(f"dataset ({path}) cannot be read: {one_line(error)}") from error
        version = manifest.get("format_version") if isinstance(manifest, dict) else None
        check_version(f"dataset ({path})", version)
        if lacking := {"dataset_id", "clips", "settings"} - manifest.keys():
            raise UserError(
                f"dataset ({path}): {MANIFEST} lacks {', '.join(sorted(lacking))}; {_AGAIN}"
            )
        return cls(folder, manifest)

    @property
    def dataset_id(self) -> str:
        """Equal for equal clips, labels and splits."""
        return str(self.manifest["dataset_id"])

    @property
    def num_clips(self) -> int:
        """Rows."""
        return int(self.manifest["clips"])

    @property
    def frame_rate(self) -> float:
        """Frames a second of every clip."""
        return float(self.manifest["settings"]["frame_rate"])

    @property
    def sample_rate(self) -> int:
        """Samples a second of every clip."""
        return int(self.manifest["settings"]["sample_rate"])

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels, sorted."""
        return tuple(str(name) for name in np.unique(self.index.label) if name)

    @cached_property
    def shards(self) -> tuple[str, ...]:
        """The files of clips, in the order of the index."""
        return self._tables(CLIPS_FOLDER)

    def _tables(self, part: str) -> tuple[str, ...]:
        """The Parquet files of a part of the dataset, sorted."""
        folder = f"{self.path}/{part}"
        if not is_folder(folder):
            return ()
        return tuple(
            sorted(entry.uri for entry in list_files(folder) if entry.uri.endswith(".parquet"))
        )

    @cached_property
    def index(self) -> ClipIndex:
        """Reads the small columns of all shards.

        Raises:
            UserError: If one is damaged or not there.
        """
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            parts = list(pool.map(_read_small, self.shards))
        num_rows = sum(len(table) for table, _ in parts)
        if num_rows != self.num_clips:
            raise UserError(
                f"dataset ({self.path}) has {num_rows} clips in its shards, but {self.num_clips} "
                f"in {MANIFEST}; {_AGAIN}"
            )
        table = pa.concat_tables([table for table, _ in parts])
        columns = _to_numpy(table.select(_INDEX_COLUMNS))
        sizes = np.array([size for _, sizes in parts for size in sizes], np.int64)
        group = np.repeat(np.arange(len(sizes)), sizes)
        row_in_group = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return ClipIndex(
            **columns,
            group=group,
            row_in_group=row_in_group,
            source_number=_source_numbers(table),
        )

    @cached_property
    def _groups(self) -> tuple[tuple[str, int], ...]:
        """Shard and number in the shard of each row group."""
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            counts = list(pool.map(_num_groups, self.shards))
        return tuple(
            (shard, number)
            for shard, count in zip(self.shards, counts, strict=True)
            for number in range(count)
        )

    def read_group(self, group: int) -> "ClipGroup":
        """Reads the tensors of a row group."""
        shard, number = self._groups[group]
        # Opened anew each time: an open file must not be read by two threads at once.
        with open_parquet(shard) as file:
            table = file.read_row_group(number, columns=["frames", "waveform"], use_threads=False)
        first = int(np.searchsorted(self.index.group, group))
        return ClipGroup(table, self.index, first)

    def clips(self, rows: Iterable[int]) -> Iterator[Clip]:
        """Gives rows in the order asked for; cheapest if rows of a row group follow each other."""
        index = self.index
        read, group = -1, None
        for row in map(int, rows):
            if group is None or index.group[row] != read:
                read = int(index.group[row])
                group = self.read_group(read)
            yield Clip(
                clip_id=str(index.clip_id[row]),
                label=str(index.label[row]),
                frames=_own(group.frames(row)),
                waveform=_own(group.waveform(row)),
            )

    def rejects(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Gives the sources that were rejected and why, at most `limit` of them."""
        found: list[dict[str, Any]] = []
        for shard in self._tables(REJECTS_FOLDER):
            if limit is not None and len(found) >= limit:
                break
            with open_parquet(shard) as file:
                found += file.read().to_pylist()
        return found[:limit]

    def small_columns(self, columns: Sequence[str]) -> pa.Table:
        """Reads columns of all rows, in the order of the index."""
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            tables = list(pool.map(lambda shard: read_columns(shard, columns), self.shards))
        return pa.concat_tables(tables)


@dataclass(frozen=True)
class ClipGroup:
    """The tensors of a row group; arrays share its memory and cannot be written."""

    table: pa.Table
    index: ClipIndex
    first_row: int

    def frames(self, row: int) -> NDArray[np.uint8] | None:
        """Frames of a row of the dataset, T H W 3."""
        index = self.index
        buffer = self._buffer("frames", row)
        if buffer is None:
            return None
        shape = (index.num_frames[row], index.height[row], index.width[row], 3)
        return np.frombuffer(buffer, np.uint8).reshape(shape)

    def waveform(self, row: int) -> NDArray[np.int16] | None:
        """Samples of a row of the dataset."""
        buffer = self._buffer("waveform", row)
        return None if buffer is None else np.frombuffer(buffer, "<i2")

    def _buffer(self, column: str, row: int) -> pa.Buffer | None:
        """The bytes of a row where they are; the scalar of pyarrow would copy them."""
        value = self.table[column].chunk(0).slice(row - self.first_row, 1)
        if value.null_count:
            return None
        _, offsets, data = value.buffers()
        begin, end = np.frombuffer(offsets, np.int64, 2, 8 * value.offset).tolist()
        return data.slice(begin, end - begin)


def _own(array: NDArray[Any] | None) -> NDArray[Any] | None:
    """A copy, because a clip that is kept would keep its whole row group in memory."""
    return None if array is None else array.copy()


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
            f"{_AGAIN}"
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


def _parquet_file(place: str) -> pq.ParquetFile:
    if not is_uri(place):
        return pq.ParquetFile(place, memory_map=True)
    filesystem, path = filesystem_of(place)
    return pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True)


def _missing(folder: str) -> str:
    """Why there is no manifest."""
    if is_folder(f"{folder}/{STATE_FOLDER}"):
        return f"its ingest did not finish; {_AGAIN}"
    return f"it has no {MANIFEST}" if is_folder(folder) else "it does not exist"


def _num_groups(shard: str) -> int:
    with open_parquet(shard) as file:
        return int(file.num_row_groups)


def _read_small(shard: str) -> tuple[pa.Table, list[int]]:
    """The columns of the index, and the rows of each row group."""
    with open_parquet(shard) as file:
        check_columns(f"shard ({shard})", file.schema_arrow, CLIPS)
        groups = range(file.num_row_groups)
        sizes = [file.metadata.row_group(i).num_rows for i in groups]
        columns = [*_INDEX_COLUMNS, *_SOURCE_COLUMNS]
        return file.read(columns=columns, use_threads=False), sizes


def read_columns(shard: str, columns: Sequence[str]) -> pa.Table:
    """Reads columns of all rows of a shard of clips.

    Raises:
        UserError: If it is none that this code can read.
    """
    with open_parquet(shard) as file:
        check_columns(f"shard ({shard})", file.schema_arrow, CLIPS)
        return file.read(columns=list(columns), use_threads=False)


def _source_numbers(table: pa.Table) -> NDArray[np.int64]:
    """Numbers the sources of a table's rows."""
    hashes = table["source_hash"].dictionary_encode().unify_dictionaries()
    codes = [chunk.indices for chunk in hashes.chunks]
    keys = [pa.chunked_array(codes, pa.int32()).to_numpy()]
    # An open end is unequal to any time.
    keys += [pc.fill_null(table[field.name], -1.0).to_numpy() for field in STRETCH]
    order = np.lexsort(keys)
    is_new = np.zeros(len(order), bool)
    for key in keys:
        is_new[1:] |= key[order[1:]] != key[order[:-1]]
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.cumsum(is_new)
    return numbers


def _to_numpy(table: pa.Table) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {}
    for field in table.schema:
        if pa.types.is_string(field.type):
            values = [value or "" for value in table[field.name].to_pylist()]
            columns[field.name] = np.array(values, dtype=np.str_)
        else:
            columns[field.name] = table[field.name].to_numpy()
    return columns

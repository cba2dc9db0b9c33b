"""The reader of a clip dataset: its manifest, index and rows.

`schema` defines the format. Plain pyarrow and NumPy read raw frames as well:

    table = pyarrow.parquet.read_table("DATASET/clips")
    row = table.slice(0, 1).to_pylist()[0]
    frames = numpy.frombuffer(row["frames"], "uint8")
    frames = frames.reshape(row["num_frames"], row["height"], row["width"], 3)
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.dataset.frame_encoding import WHOLE
from pipelines.dataset.index import ClipIndex, read_index, read_shards
from pipelines.dataset.mapped_values import mapped_column
from pipelines.dataset.row_tensors import read_frames, read_waveform
from pipelines.dataset.schema import (
    CLIPS_FOLDER,
    INDEX_FILE,
    MANIFEST,
    REJECTS_FOLDER,
    STATE_FOLDER,
    check_version,
)
from pipelines.dataset.shards import AGAIN, READ_THREADS, is_shard, open_parquet, read_columns
from pipelines.errors import UserError
from pipelines.filesystems import filesystem_of, is_folder, list_files, store_failure
from pipelines.paths import is_uri
from pipelines.quantities import counted

_TENSORS = ("frames", "waveform")


@dataclass(frozen=True)
class Clip:
    """One row of the dataset; a stream that the segment lacks is None."""

    clip_id: str
    label: str
    frames: NDArray[np.uint8] | None
    """RGB frames of shape (T, H, W, 3)."""
    waveform: NDArray[np.int16] | None


@dataclass(frozen=True)
class ClipDataset:
    """A complete clip dataset; see `open`."""

    path: str
    """Folder of the dataset, or its URI."""
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, location: str | Path) -> "ClipDataset":
        """Opens the dataset at a path or URI.

        Raises:
            UserError: If the dataset does not exist or cannot be read.
        """
        folder = str(location).rstrip("/")
        try:
            filesystem, path = filesystem_of(folder)
            with filesystem.open_input_file(f"{path}/{MANIFEST}") as file:
                manifest = json.loads(file.read())
        except FileNotFoundError as error:
            raise UserError(
                f"dataset ({location}) is no clip dataset: {_missing(folder)}"
            ) from error
        except UserError:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(
                f"dataset ({location}) cannot be read: {store_failure(error)}"
            ) from error
        version = manifest.get("format_version") if isinstance(manifest, dict) else None
        check_version(f"dataset ({location})", version)
        if lacking := {"dataset_id", "clips", "settings"} - manifest.keys():
            raise UserError(
                f"dataset ({location}): {MANIFEST} lacks {', '.join(sorted(lacking))}; {AGAIN}"
            )
        if not isinstance(manifest["settings"], dict) or not isinstance(manifest["clips"], int):
            raise UserError(f"dataset ({location}): {MANIFEST} is damaged; {AGAIN}")
        return cls(folder, manifest)

    @property
    def dataset_id(self) -> str:
        """Id of the content; equal for equal clips, labels and splits."""
        return str(self.manifest["dataset_id"])

    @property
    def num_clips(self) -> int:
        """Number of rows."""
        return int(self.manifest["clips"])

    @property
    def frame_rate(self) -> float:
        """Frame rate of every clip, in frames per second."""
        return float(self.manifest["settings"]["frame_rate"])

    @property
    def frames_encoding(self) -> str:
        """How frames are stored; see `frame_encoding`."""
        return str(self.manifest["settings"].get("clips", {}).get("encoding", "raw"))

    @property
    def sample_rate(self) -> int:
        """Sample rate of every clip, in hertz."""
        return int(self.manifest["settings"]["sample_rate"])

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels, sorted."""
        return tuple(name for name in self.index.label.unique() if name)

    @property
    def shards(self) -> tuple[str, ...]:
        """Paths of the clip shards, in the order of the index."""
        return self.index.shards

    def _tables(self, part: str) -> tuple[str, ...]:
        """Returns the Parquet files of a subfolder, sorted."""
        folder = f"{self.path}/{part}"
        if not is_folder(folder):
            return ()
        return tuple(sorted(entry.uri for entry in list_files(folder) if is_shard(entry.uri)))

    @cached_property
    def index(self) -> ClipIndex:
        """Index of all rows, read from its file or from the shards.

        Raises:
            UserError: If a shard is damaged or missing.
        """
        index = read_index(self.path, f"{self.path}/{CLIPS_FOLDER}", self.manifest)
        if index is None:
            index = read_shards(self._tables(CLIPS_FOLDER))
        if len(index) != self.num_clips:
            raise UserError(
                f"dataset ({self.path}) has {counted(len(index), 'clip')} in its shards, but "
                f"{self.num_clips:,} in {MANIFEST}; {AGAIN}"
            )
        return index

    def read_group(self, group: int) -> "ClipGroup":
        """Reads the tensors of a row group.

        Raises:
            UserError: If it is damaged or missing, or if it differs from the index.
        """
        shard, number = self.index.shard_of_group(group)
        first, stop = self.index.rows_of_group(group)
        # Each call opens the file again, because two threads must not share an open file.
        with open_parquet(shard) as file:
            is_there = number < file.num_row_groups
            mapped = self._mapped(shard, file, number, slice(first, stop)) if is_there else {}
            columns = ["clip_id", *(name for name in _TENSORS if name not in mapped)]
            table = file.read_row_group(number, columns, use_threads=False) if is_there else None
        if table is not None and len(table) == stop - first:
            for name, values in mapped.items():
                table = table.append_column(name, values)
        ids = self.index.clip_id[first:stop].tolist()
        if table is None or table["clip_id"].to_pylist() != ids:
            raise UserError(
                f"shard ({shard}) is not as {INDEX_FILE} says; delete {INDEX_FILE} and {AGAIN}"
            )
        return ClipGroup(table, self.index, first, shard)

    def _mapped(
        self, shard: str, file: pq.ParquetFile, number: int, rows: slice
    ) -> dict[str, pa.ChunkedArray]:
        """Returns the columns of raw tensors that a local file holds as they are in memory."""
        if is_uri(shard):
            return {}
        index = self.index
        pixels = index.height[rows].astype(np.int64) * index.width[rows] * index.num_frames[rows]
        sizes = {"waveform": 2 * index.num_samples[rows].astype(np.int64)}
        if self.frames_encoding == "raw":
            sizes["frames"] = 3 * pixels
        columns = {
            name: mapped_column(shard, file, number, name, num_bytes.tolist())
            for name, num_bytes in sizes.items()
        }
        return {name: values for name, values in columns.items() if values is not None}

    def clips(self, rows: Iterable[int]) -> Iterator[Clip]:
        """Yields rows in the given order; consecutive rows of a row group share one read."""
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
        """Returns the rejected sources with their reasons, at most `limit` of them."""
        found: list[dict[str, Any]] = []
        for shard in self._tables(REJECTS_FOLDER):
            if limit is not None and len(found) >= limit:
                break
            with open_parquet(shard) as file:
                found += file.read().to_pylist()
        return found[:limit]

    def small_columns(self, columns: Sequence[str]) -> pa.Table:
        """Reads columns of all rows in the order of the index."""
        with ThreadPoolExecutor(READ_THREADS) as pool:
            tables = list(pool.map(lambda shard: read_columns(shard, columns), self.shards))
        return pa.concat_tables(tables)


@dataclass(frozen=True)
class ClipGroup:
    """The tensors of a row group. Raw ones are read-only and share its memory."""

    table: pa.Table
    index: ClipIndex
    first_row: int
    shard: str

    def frames(self, row: int, part: slice = WHOLE) -> NDArray[np.uint8] | None:
        """Returns frames of a dataset row, of shape (T, H, W, 3); decodes only the part.

        Raises:
            UserError: If they are damaged.
        """
        index = self.index
        shape = (int(index.num_frames[row]), int(index.height[row]), int(index.width[row]))
        return read_frames(
            self.table, row - self.first_row, shard=self.shard, shape=shape, part=part
        )

    def waveform(self, row: int) -> NDArray[np.int16] | None:
        """Returns the samples of a dataset row."""
        return read_waveform(self.table, row - self.first_row)


def _own(array: NDArray[Any] | None) -> NDArray[Any] | None:
    """Copies an array, because a view keeps its whole row group in memory."""
    return None if array is None else array.copy()


def _missing(folder: str) -> str:
    """Explains why the manifest is missing."""
    if is_folder(f"{folder}/{STATE_FOLDER}"):
        return f"its ingest did not finish; {AGAIN}"
    if is_folder(f"{folder}/{CLIPS_FOLDER}/{CLIPS_FOLDER}"):
        return f"it is the folder of a run; give {folder}/{CLIPS_FOLDER}"
    return f"it has no {MANIFEST}" if is_folder(folder) else "it does not exist"

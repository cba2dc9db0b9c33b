"""Reading a clip dataset: what it holds, and its rows.

The format is in `schema`; plain pyarrow and NumPy read it as well:

    table = pyarrow.parquet.read_table("DATASET/clips")
    row = table.slice(0, 1).to_pylist()[0]
    frames = numpy.frombuffer(row["frames"], "uint8")
    frames = frames.reshape(row["num_frames"], row["height"], row["width"], 3)
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.errors import UserError
from pipelines.ingest_plan import STATE_FOLDER
from pipelines.schema import (
    CLIPS,
    CLIPS_FOLDER,
    MANIFEST,
    REJECTS_FOLDER,
    check_columns,
    check_version,
)

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

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "ClipDataset":
        """Opens the dataset in a folder.

        Raises:
            UserError: If there is none, or one that this code cannot read.
        """
        folder = Path(path)
        file = folder / MANIFEST
        try:
            manifest = json.loads(file.read_text())
        except FileNotFoundError as error:
            why = f"it has no {MANIFEST}"
            if (folder / STATE_FOLDER).is_dir():
                why = "its ingest did not finish; run the same ingest again"
            elif not folder.exists():
                why = "it does not exist"
            raise UserError(f"dataset ({path}) is no clip dataset: {why}") from error
        except (OSError, ValueError) as error:
            raise UserError(f"dataset ({path}) cannot be read: {error}") from error
        version = manifest.get("format_version") if isinstance(manifest, dict) else None
        check_version(f"dataset ({path})", version)
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
    def shards(self) -> tuple[Path, ...]:
        """The files of clips, in the order of the index."""
        return tuple(sorted((self.path / CLIPS_FOLDER).glob("*.parquet")))

    @cached_property
    def index(self) -> ClipIndex:
        """Reads the small columns of all shards."""
        tables, group_sizes = [], []
        for shard in self.shards:
            with pq.ParquetFile(shard) as file:
                check_columns(f"shard ({shard})", file.schema_arrow, CLIPS)
                tables.append(file.read(columns=_INDEX_COLUMNS))
                group_sizes += _group_sizes(file)
        columns = _to_numpy(pa.concat_tables(tables))
        sizes = np.array(group_sizes, np.int64)
        group = np.repeat(np.arange(len(sizes)), sizes)
        row_in_group = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return ClipIndex(**columns, group=group, row_in_group=row_in_group)

    @cached_property
    def _groups(self) -> tuple[tuple[Path, int], ...]:
        """Shard and number in the shard of each row group."""
        return tuple(
            (shard, number)
            for shard in self.shards
            for number in range(pq.read_metadata(shard).num_row_groups)
        )

    def read_group(self, group: int) -> "ClipGroup":
        """Reads the tensors of a row group."""
        shard, number = self._groups[group]
        # Opened anew each time: an open file must not be read by two threads at once.
        with pq.ParquetFile(shard, memory_map=True) as file:
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
                frames=group.frames(row),
                waveform=group.waveform(row),
            )

    def rejects(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Gives the sources that were rejected and why, at most `limit` of them."""
        found: list[dict[str, Any]] = []
        for file in sorted((self.path / REJECTS_FOLDER).glob("*.parquet")):
            if limit is not None and len(found) >= limit:
                break
            found += pq.read_table(file, partitioning=None).to_pylist()
        return found[:limit]


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

    def _buffer(self, column: str, row: int) -> Any:
        return self.table[column][row - self.first_row].as_buffer()


def _group_sizes(file: pq.ParquetFile) -> list[int]:
    return [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]


def _to_numpy(table: pa.Table) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {}
    for field in table.schema:
        if pa.types.is_string(field.type):
            values = [value or "" for value in table[field.name].to_pylist()]
            columns[field.name] = np.array(values, dtype=np.str_)
        else:
            columns[field.name] = table[field.name].to_numpy()
    return columns

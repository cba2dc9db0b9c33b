"""Reads the complete units of an output and revises them when the input changes.

A unit has one shard of rows and, if it rejects sources, a shard of rejects with the same name. A
unit of sources is named by their hash. A run writes to its scratch folder, then renames shards::

    scratch of the run          output                  a restart finds
    clips of 7c1e (partial)     -                       no unit: decodes it again
    clips of 7c1e (complete)    rejects/7c1e.parquet    no unit: deletes it, decodes again
    -                           clips/7c1e.parquet      a complete unit: skips it

A revision removes changed and deleted sources from shards, and rewrites new names and labels. It
decodes nothing.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data

from pipelines.dataset.schema import REJECTS_FOLDER, STRETCH
from pipelines.dataset.shards import (
    READ_THREADS,
    ShardWriter,
    open_parquet,
    parquet_file,
    shard_names,
)
from pipelines.errors import UserError
from pipelines.storage import AnyPath, size_of

TAGS = ("label", "labels", "split", "group")
"""Columns from the list of sources rather than from their bytes."""

_HELD = ("source", "source_hash", *TAGS, "reason", "message", *(field.name for field in STRETCH))
_SMALL_COUNT, _SMALL_BYTES = 16, 50_000_000
"""Shards and their bytes that the driver revises by itself."""
_FILES_AT_A_TIME = 256
"""Number of shards whose columns are in memory at a time."""

Key = tuple[str, str | None]
"""Name and hash of a source in a shard."""


@dataclass(frozen=True, slots=True)
class StoredSource:
    """A source as a complete unit stores it."""

    shard: str
    source: str
    source_hash: str | None
    tags: Mapping[str, Any]
    """Values of the `TAGS` columns that the shard has."""
    reason: str | None = None
    """Reason for the reject, or None if the source was accepted."""
    message: str = ""
    stretch: tuple[float | None, float | None] = (None, None)
    """Start and end of the decoded stretch, in seconds."""

    @property
    def key(self) -> Key:
        """Key of the rows of this source."""
        return self.source, self.source_hash


@dataclass(frozen=True)
class StoredUnits:
    """The sources that complete units hold."""

    shards: frozenset[str] = frozenset()
    """Names of the shards, relative to their folder."""
    accepted: Mapping[str, StoredSource] = field(default_factory=dict)
    """Accepted sources by hash."""
    rejected: Mapping[str, StoredSource] = field(default_factory=dict)
    """Rejected sources by name."""


Revision = dict[Key, dict[str, Any] | None]
"""Changes to one shard: new values for the rows of a source, or None to remove them."""


def read_done(output: AnyPath, rows_folder: str) -> StoredUnits:
    """Reads the sources of complete units, and removes leftovers of incomplete ones.

    Raises:
        UserError: If a shard is damaged.
    """
    shards = frozenset(shard_names(output / rows_folder))
    rejects = []
    for name in shard_names(output / REJECTS_FOLDER):
        if name in shards:
            rejects.append(name)
        else:
            (output / REJECTS_FOLDER / name).unlink(missing_ok=True)
    accepted: dict[str, StoredSource] = {}
    rejected: dict[str, StoredSource] = {}
    for held in _read_all(output / rows_folder, sorted(shards)):
        assert held.source_hash is not None
        accepted[held.source_hash] = held
    for held in _read_all(output / REJECTS_FOLDER, rejects):
        rejected[held.source] = held
    return StoredUnits(shards, accepted, rejected)


def revise(
    output: AnyPath, rows_folder: str, revisions: Mapping[str, Revision], scratch: AnyPath
) -> None:
    """Removes sources from shards or updates their rows. The operation is idempotent."""
    if not revisions:
        return
    rows = [
        {
            "shard": name,
            "revision": json.dumps([[*key, values] for key, values in revision.items()]),
        }
        for name, revision in revisions.items()
    ]
    reviser = partial(_revise_shard, output, rows_folder, scratch)
    if _are_small([output / rows_folder / name for name in revisions]):
        for row in rows:
            reviser(row)
        return
    # 1:1. Each task reads and writes one whole shard.
    revised = ray.data.from_items(rows, override_num_blocks=len(rows)).map(reviser)
    revised.context.enable_progress_bars = False
    for _ in revised.iter_rows():
        pass


def _are_small(shards: Sequence[AnyPath]) -> bool:
    """Whether the driver revises shards in less time than a graph takes to start."""
    return len(shards) <= _SMALL_COUNT and sum(map(size_of, shards)) <= _SMALL_BYTES


def _revise_shard(
    output: AnyPath, rows_folder: str, scratch: AnyPath, row: dict[str, Any]
) -> dict[str, Any]:
    revision = {(source, key): values for source, key, values in json.loads(row["revision"])}
    shard, rejects = output / rows_folder / row["shard"], output / REJECTS_FOLDER / row["shard"]
    if rejects.exists() and not _rewrite(rejects, revision, scratch):
        rejects.unlink()
    if not _rewrite(shard, revision, scratch) and not rejects.exists():
        shard.unlink()
    return {"shard": row["shard"]}


def _rewrite(path: AnyPath, revision: Revision, scratch: AnyPath) -> int:
    """Rewrites a shard if the revision affects it. Returns the number of rows left."""
    with open_parquet(str(path)) as file:
        table = file.read(columns=["source", "source_hash"])
        keys = set(zip(*(column.to_pylist() for column in table.columns), strict=True))
        if not keys & revision.keys():
            return len(table)
        groups = range(file.num_row_groups)
        rows_per_group = max(file.metadata.row_group(group).num_rows for group in groups)
        writer = ShardWriter(
            path, file.schema_arrow, rows_per_group=rows_per_group, scratch=scratch
        )
        num_rows = 0
        try:
            for group in groups:
                for row in _revised(file.read_row_group(group), revision):
                    writer.add(row)
                    num_rows += 1
            writer.commit()
        except BaseException:
            writer.discard()
            raise
    return num_rows


def _revised(table: pa.Table, revision: Revision) -> Iterator[dict[str, Any]]:
    for row in table.to_pylist():
        values = revision.get((row["source"], row["source_hash"]), {})
        if values is not None:
            yield row | {name: value for name, value in values.items() if name in row}


def _read_all(folder: AnyPath, names: Sequence[str]) -> Iterator[StoredSource]:
    """Yields each source of each shard once, in the order of the names."""
    shared: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for first in range(0, len(names), _FILES_AT_A_TIME):
            some = names[first : first + _FILES_AT_A_TIME]
            tables = pool.map(_read_small, (folder / name for name in some))
            for name, table in zip(some, tables, strict=True):
                yield from _held(name, table, shared)


def _read_small(file: AnyPath) -> pa.Table:
    """Reads the columns of the sources. `ParquetFile` takes a tenth of the time of `read_table`."""
    try:
        with parquet_file(str(file)) as shard:
            names = [name for name in _HELD if name in shard.schema_arrow.names]
            return shard.read(columns=names, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"shard ({file}) is damaged: {error}; delete it and run the "
            "same command again, which rewrites it"
        ) from error


def _held(
    shard: str, table: pa.Table, shared: dict[tuple[Any, ...], Mapping[str, Any]]
) -> Iterator[StoredSource]:
    """Yields each source of a table once. Sources with equal tags share them."""
    columns = {name: table[name].to_pylist() for name in table.column_names}
    nothing = [None] * len(table)
    stretches = [columns.get(field.name, nothing) for field in STRETCH]
    tags = [name for name in TAGS if name in columns]
    seen = set()
    for row, key in enumerate(zip(columns["source"], columns["source_hash"], strict=True)):
        if key in seen:
            continue
        seen.add(key)
        values = [columns[name][row] for name in tags]
        name = tuple(tuple(value) if isinstance(value, list) else value for value in values)
        yield StoredSource(
            shard=shard,
            source=key[0],
            source_hash=key[1],
            tags=shared.setdefault((*tags, *name), dict(zip(tags, values, strict=True))),
            reason=columns.get("reason", nothing)[row],
            message=columns["message"][row] if "message" in columns else "",
            stretch=(stretches[0][row], stretches[1][row]),
        )

"""Several clip datasets as one, with one order of clips and one id.

datasets   b.id < a.id < c.id
rows       [b's rows] [a's rows] [c's rows]     whatever order they are named in
id         hash of the ids in that order
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.config.base import Datasets
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.index import ClipIndex
from pipelines.dataset.text_column import TextColumn, array_of
from pipelines.errors import UserError
from pipelines.quantities import counted

_OFFSETS = ("group", "source_number")
"""Columns that count on through all datasets."""


def open_datasets(locations: Datasets) -> ClipDataset:
    """Opens a dataset, or several as one.

    Raises:
        UserError: If one does not exist or cannot be read, if their clips differ in rate or
            encoding, or if a clip is in two of them.
    """
    if isinstance(locations, str):
        return ClipDataset.open(locations)
    parts = [ClipDataset.open(location) for location in locations]
    if len(parts) == 1:
        return parts[0]
    parts.sort(key=lambda part: part.dataset_id)
    _check_alike(parts)
    ids = [part.dataset_id for part in parts]
    manifest = {
        **parts[0].manifest,
        "dataset_id": hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:32],
        "clips": sum(part.num_clips for part in parts),
    }
    return JoinedDataset(", ".join(part.path for part in parts), manifest, tuple(parts))


@dataclass(frozen=True)
class JoinedDataset(ClipDataset):
    """Several datasets as one."""

    parts: tuple[ClipDataset, ...]

    @cached_property
    def index(self) -> ClipIndex:
        """Index of all rows of all datasets.

        Raises:
            UserError: If a shard is damaged or missing, or a clip is in two datasets.
        """
        index = _joined([part.index for part in self.parts])
        if twice := len(index) - len(set(index.clip_id.tolist())):
            raise UserError(
                f"dataset ({self.path}): {counted(twice, 'clip')} in more than one of them; leave "
                "one out"
            )
        return index

    def _tables(self, part: str) -> tuple[str, ...]:
        return tuple(table for one in self.parts for table in one._tables(part))


def _check_alike(parts: Sequence[ClipDataset]) -> None:
    first = parts[0]
    for other in parts[1:]:
        for name in ("frame_rate", "sample_rate", "frames_encoding"):
            here, there = getattr(first, name), getattr(other, name)
            if here != there:
                raise UserError(
                    f"datasets must have the same {name}: ({first.path}) has {here}, "
                    f"({other.path}) has {there}"
                )
    for before, part in pairwise(parts):
        if before.dataset_id == part.dataset_id:
            raise UserError(
                f"datasets ({before.path}) and ({part.path}) hold the same clips; leave one out"
            )


def _joined(indexes: Sequence[ClipIndex]) -> ClipIndex:
    columns: dict[str, Any] = {}
    for field in fields(ClipIndex):
        values = [getattr(index, field.name) for index in indexes]
        if field.name == "shards":
            columns[field.name] = tuple(shard for shards in values for shard in shards)
        elif field.name == "group_ends":
            columns[field.name] = np.concatenate(_counted_on(values, [_last(v) for v in values]))
        elif isinstance(values[0], TextColumn):
            whole = pa.chunked_array([array_of(value) for value in values])
            columns[field.name] = TextColumn(pa.concat_arrays(whole.unify_dictionaries().chunks))
        elif field.name in _OFFSETS:
            sizes = [int(value.max()) + 1 if len(value) else 0 for value in values]
            if field.name == "group":
                sizes = [_last(index.group_ends) for index in indexes]
            columns[field.name] = np.concatenate(_counted_on(values, sizes))
        else:
            columns[field.name] = np.concatenate(values)
    return ClipIndex(**columns)


def _last(ends: Any) -> int:
    return int(ends[-1]) if len(ends) else 0


def _counted_on(values: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    """Adds to the numbers of each dataset how many there are before it."""
    begins = np.cumsum([0, *sizes[:-1]])
    return [
        (value + begin).astype(value.dtype) for value, begin in zip(values, begins, strict=True)
    ]

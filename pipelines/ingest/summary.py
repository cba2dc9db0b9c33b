"""Results of an ingest: counts from the shards, the dataset ID, and the manifest."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config.ingest import IngestSettings
from pipelines.dataset.schema import CLIPS_FOLDER, FORMAT_VERSION, MANIFEST, REJECTS_FOLDER
from pipelines.dataset.shards import READ_THREADS, open_parquet, read_columns, shard_names
from pipelines.dataset.source_flaws import COLUMNS as FLAW_COLUMNS
from pipelines.dataset.source_flaws import SourceFlaws, count_flaws
from pipelines.errors import UserError
from pipelines.files import write_json
from pipelines.ingest.plan import Changes
from pipelines.quantities import counted
from pipelines.sources.source import SourceList
from pipelines.storage import AnyPath

_ROWS_PER_HASH = 65_536
_FILES_AT_A_TIME = 256
"""Number of shards whose columns are in memory at a time."""
_IDENTITY = ("clip_id", "label", "labels", "split")
_LABELS = pa.list_(pa.string())


@dataclass(frozen=True)
class IngestSummary:
    """Contents of a clip dataset, and what this call added."""

    sources: int
    accepted: int
    rejected: int
    rejects_by_reason: dict[str, int]
    clips: int
    new_clips: int
    """Clips that this call added."""
    media_seconds: float
    flaws: SourceFlaws
    """Accepted sources that gave less than they declare, or needed repair."""
    dataset_id: str
    ignored: dict[str, int]
    """Files of the input that are not media, by extension."""
    notes: list[str]
    """Readable sentences about how splits and labels were read."""
    changes: Changes
    """Differences between the input and the earlier output."""


def summarize(
    folder: AnyPath,
    listed: SourceList,
    new_units: Iterable[str],
    changes: Changes,
    settings: IngestSettings,
) -> IngestSummary:
    """Counts the contents of the shards, independently of what the run reported.

    Args:
        folder: The clip dataset.
        listed: The input.
        new_units: Names of the units that this call has written.
        changes: Differences between the input and the earlier output.
        settings: Settings of the ingest.
    """
    accepted = _Accepted()
    names = shard_names(folder / CLIPS_FOLDER)
    for tables in _tables(folder / CLIPS_FOLDER, names):
        accepted.add(tables)
    reasons: Counter[str] = Counter()
    rejected = [np.empty(0, np.uint64)]
    rejects = folder / REJECTS_FOLDER
    for name in shard_names(rejects):
        with open_parquet(str(rejects / name)) as shard:
            table = shard.read(columns=["source", "reason"], use_threads=False)
        rejected.append(_hashes(table["source"]))
        reasons.update(table["reason"].to_pylist())
    num_rejected = len(np.unique(np.concatenate(rejected)))
    sources = np.unique(np.concatenate(accepted.sources))
    assert not len(np.intersect1d(sources, np.concatenate(rejected)))
    assert reasons.total() == num_rejected
    return IngestSummary(
        sources=len(sources) + num_rejected,
        accepted=len(sources),
        rejected=num_rejected,
        rejects_by_reason=dict(sorted(reasons.items())),
        clips=sum(accepted.num_clips),
        new_clips=_number_of(new_units, names, accepted.num_clips),
        media_seconds=accepted.seconds,
        flaws=accepted.flaws,
        dataset_id=_dataset_id(pa.concat_tables(accepted.identities), settings),
        ignored=listed.ignored,
        notes=_notes(listed, settings),
        changes=changes,
    )


class _Accepted:
    """What shards of clips hold, summed up piece by piece: some 60 bytes a clip stay."""

    def __init__(self) -> None:
        self.sources = [np.empty(0, np.uint64)]
        self.num_clips: list[int] = []
        self.seconds = 0.0
        self.flaws = SourceFlaws()
        self.identities = [_identity(pa.table({name: [] for name in _IDENTITY}))]

    def add(self, tables: Sequence[pa.Table]) -> None:
        """Adds shards, each of which holds its sources whole."""
        self.num_clips += map(len, tables)
        clips = pa.concat_tables(tables)
        self.sources.append(_hashes(pc.unique(clips["source"])))
        self.seconds = sum(clips["duration_seconds"].to_pylist(), self.seconds)
        found, before = asdict(count_flaws(clips)), asdict(self.flaws)
        self.flaws = SourceFlaws(**{name: found[name] + before[name] for name in found})
        self.identities.append(_identity(clips))


def _tables(folder: AnyPath, names: Sequence[str]) -> Iterator[list[pa.Table]]:
    """Yields the columns of some shards at a time."""
    columns = [*_IDENTITY, "duration_seconds", *FLAW_COLUMNS]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for first in range(0, len(names), _FILES_AT_A_TIME):
            files = [str(folder / name) for name in names[first : first + _FILES_AT_A_TIME]]
            yield list(pool.map(lambda file: read_columns(file, columns), files))


def _identity(clips: pa.Table) -> pa.Table:
    """Returns what the ID is made of, in little memory: text that repeats is kept once."""
    several = pc.greater(pc.fill_null(pc.list_value_length(clips["labels"].cast(_LABELS)), 0), 1)
    labels = pc.if_else(several, clips["labels"].cast(_LABELS), pa.scalar(None, _LABELS))
    return pa.table(
        {
            "clip_id": clips["clip_id"].cast(pa.string()),
            "label": clips["label"].cast(pa.string()).dictionary_encode(),
            "labels": labels,
            "split": clips["split"].cast(pa.string()).dictionary_encode(),
        }
    )


def _hashes(sources: pa.ChunkedArray) -> "np.ndarray[Any, Any]":
    """Returns 8 bytes for each source."""
    return pd.util.hash_array(np.asarray(sources.to_pylist(), dtype=object), categorize=False)


def _number_of(units: Iterable[str], names: Sequence[str], num_clips: Sequence[int]) -> int:
    """Returns the number of clips in some units."""
    of_shard = dict(zip(names, num_clips, strict=True))
    return sum(of_shard[f"{unit}.parquet"] for unit in units)


def _notes(listed: SourceList, settings: IngestSettings) -> list[str]:
    if any(source.split for source in listed.sources):
        return listed.notes
    held_out = f"splits are made from content: {settings.heldout_fraction:.0%} of the sources test"
    return [*listed.notes, held_out]


def _dataset_id(clips: pa.Table, settings: IngestSettings) -> str:
    """Hashes what a reader sees: clips, labels, splits, and the decode settings."""
    clips = clips.select(["clip_id", "label", "labels", "split"]).sort_by("clip_id")
    assert pc.count_distinct(clips["clip_id"]).as_py() == len(clips)
    made: dict[str, Any] = {
        name: getattr(settings, name)
        for name in (
            "segment_seconds",
            "min_segment_seconds",
            "frame_rate",
            "short_side",
            "sample_rate",
        )
    }
    if settings.min_source_seconds is not None:  # keeps the IDs of older datasets
        made["min_source_seconds"] = settings.min_source_seconds
    if settings.clips.encoding != "raw":
        made["clips"] = [settings.clips.encoding, settings.clips.chosen_quality]
    # The text of `json.dumps([FORMAT_VERSION, made, rows])`, made in parts.
    digest = hashlib.sha256(f"[{FORMAT_VERSION}, {json.dumps(made)}, [".encode())
    separator = ""
    for batch in clips.to_batches(max_chunksize=_ROWS_PER_HASH):
        rows = [
            (name, labels if labels and len(labels) > 1 else label, split)
            for name, label, labels, split in zip(
                *(column.to_pylist() for column in batch.columns), strict=True
            )
        ]
        digest.update((separator + json.dumps(rows)[1:-1]).encode())
        separator = ", "
    digest.update(b"]]")
    return digest.hexdigest()[:32]


def check_outcome(
    summary: IngestSummary, listed: SourceList, folder: AnyPath, settings: IngestSettings
) -> None:
    """Refuses a dataset without clips, or with more rejects than the settings allow.

    Raises:
        UserError: If the dataset is refused.
    """
    # With `keep_removed`, the dataset may hold more sources than the input.
    assert summary.sources == len(listed.sources) or settings.keep_removed
    reasons = ", ".join(f"{count} {reason}" for reason, count in summary.rejects_by_reason.items())
    if not summary.clips:
        raise UserError(
            f"input ({listed.input}) gives no clip: {counted(summary.rejected, 'source')} rejected "
            f"({reasons}); {folder / REJECTS_FOLDER} says why"
        )
    if summary.rejected > settings.max_reject_fraction * summary.sources:
        raise UserError(
            f"{summary.rejected:,} of {counted(summary.sources, 'source')} rejected "
            f"({reasons}), more than max_reject_fraction ({settings.max_reject_fraction:g}); "
            f"{folder / REJECTS_FOLDER} says why"
        )


def write_manifest(
    folder: AnyPath, listed: SourceList, summary: IngestSummary, settings: IngestSettings
) -> None:
    """Writes the manifest unless it is unchanged."""
    counts = asdict(summary)
    del (
        counts["new_clips"],
        counts["dataset_id"],
        counts["ignored"],
        counts["changes"],
        counts["notes"],
    )
    manifest = {
        "format_version": FORMAT_VERSION,
        "dataset_id": summary.dataset_id,
        "input": listed.input,
        **counts,
        "ignored": listed.ignored,
        "settings": settings.model_dump(mode="json", include=set(IngestSettings.model_fields)),
    }
    if not _holds(folder / MANIFEST, manifest):
        write_json(folder / MANIFEST, manifest)


def _holds(file: AnyPath, values: Mapping[str, Any]) -> bool:
    """Whether a valid JSON file exists and holds exactly these values."""
    try:
        return bool(json.loads(file.read_text()) == values)
    except UserError:  # of a store that is away
        raise
    except (FileNotFoundError, ValueError):
        return False

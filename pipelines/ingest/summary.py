"""Results of an ingest: counts from the shards, the dataset ID, and the manifest."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config.ingest import IngestSettings
from pipelines.dataset.schema import CLIPS_FOLDER, FORMAT_VERSION, MANIFEST, REJECTS_FOLDER
from pipelines.dataset.shards import READ_THREADS, open_parquet, read_columns, shard_names
from pipelines.dataset.source_flaws import COLUMNS as FLAW_COLUMNS
from pipelines.dataset.source_flaws import SourceFlaws, count_flaws
from pipelines.errors import UserError
from pipelines.files import write_json
from pipelines.ingest.plan import Changes, IngestPlan
from pipelines.quantities import counted
from pipelines.sources.source import SourceList
from pipelines.storage import AnyPath

_ROWS_PER_HASH = 65_536


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
    folder: AnyPath, listed: SourceList, plan: IngestPlan, settings: IngestSettings
) -> IngestSummary:
    """Counts the contents of the shards, independently of what the run reported."""
    columns = ["clip_id", "duration_seconds", "label", "labels", "split", *FLAW_COLUMNS]
    names = shard_names(folder / CLIPS_FOLDER)
    files = [folder / CLIPS_FOLDER / name for name in names]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        tables = list(pool.map(lambda file: read_columns(str(file), columns), files))
    num_clips = {name: len(table) for name, table in zip(names, tables, strict=True)}
    clips = pa.concat_tables(tables)
    reasons: Counter[str] = Counter()
    rejected = set()
    for name in shard_names(folder / REJECTS_FOLDER):
        with open_parquet(str(folder / REJECTS_FOLDER / name)) as shard:
            table = shard.read(columns=["source", "reason"], use_threads=False)
        rejected.update(table["source"].to_pylist())
        reasons.update(table["reason"].to_pylist())
    accepted = set(pc.unique(clips["source"]).to_pylist())
    assert not accepted & rejected
    assert reasons.total() == len(rejected)
    return IngestSummary(
        sources=len(accepted) + len(rejected),
        accepted=len(accepted),
        rejected=len(rejected),
        rejects_by_reason=dict(sorted(reasons.items())),
        clips=len(clips),
        new_clips=sum(num_clips[f"{unit.name}.parquet"] for unit in plan.units),
        media_seconds=sum(clips["duration_seconds"].to_pylist()),
        flaws=count_flaws(clips),
        dataset_id=_dataset_id(clips, settings),
        ignored=listed.ignored,
        notes=_notes(listed, settings),
        changes=plan.changes,
    )


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
    except (FileNotFoundError, ValueError):
        return False

"""From media to a clip dataset: fingerprint -> plan -> decode, on Ray Data.

The shards are ours (`shards`), because each unit must be written exactly once however the run ends.
The manifest is written last: a folder without one is not a dataset yet, and the same call completes
it. A call on a complete dataset whose input has changed does only what is different.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config.ingest import IngestSettings
from pipelines.dataset.index import read_index, read_shards, write_index
from pipelines.dataset.schema import (
    CLIPS_FOLDER,
    FORMAT_VERSION,
    INDEX_FILE,
    MANIFEST,
    REJECTS_FOLDER,
    STATE_FOLDER,
)
from pipelines.dataset.shards import read_columns
from pipelines.dataset.source_flaws import COLUMNS as FLAW_COLUMNS
from pipelines.dataset.source_flaws import SourceFlaws, count_flaws
from pipelines.errors import UserError
from pipelines.files import locked, remove_leftovers, scratch_folder, write_failure, write_json
from pipelines.ingest.plan import Changes, Plan, Unit, make_plan
from pipelines.ingest.state import (
    SETTINGS_FILE,
    check_same,
    fixed_settings,
    reasons_of_raised_limits,
)
from pipelines.ingest.unit_graph import run_units
from pipelines.ingest.unit_shards import read_done, revise
from pipelines.ingest.worker import UnitIngester
from pipelines.progress import OnProgress
from pipelines.sources.fingerprints import fingerprint_sources
from pipelines.sources.listing import list_input
from pipelines.sources.source import SourceList


@dataclass(frozen=True)
class IngestSummary:
    """What a clip dataset holds, and what this call added."""

    sources: int
    accepted: int
    rejected: int
    rejects_by_reason: dict[str, int]
    clips: int
    new_clips: int
    """Clips that were not there before this call."""
    media_seconds: float
    flaws: SourceFlaws
    """Accepted sources that gave less than they declare, or had to be mended."""
    dataset_id: str
    ignored: dict[str, int]
    """Files of the input that are not media, by extension."""
    notes: list[str]
    """How splits and labels were read, in sentences for people."""
    changes: Changes
    """How the input differs from what was complete before this call."""


def check_ingest(input_path: str | None, output: str, settings: IngestSettings) -> None:
    """Finds what stands in the way of an ingest, without writing anything.

    Args:
        input_path: None if the input will only be made.
        output: Folder of the clip dataset.
        settings: How it would be made.

    Raises:
        UserError: As `ingest`.
    """
    listed = list_input(input_path, settings) if input_path is not None else None
    check_same(Path(output), listed.input if listed else None, settings)


def ingest(
    input_path: str, output: str, settings: IngestSettings, *, on_progress: OnProgress
) -> IngestSummary:
    """Turns media into a clip dataset, or completes one; Ray is connected.

    Raises:
        UserError: If the input holds no media, the output holds something else or cannot be
            written, every source is rejected, or more are than `max_reject_fraction` allows.
        JobFailed: If a unit ends its worker again and again.
    """
    folder = Path(output).absolute()
    state = folder / STATE_FOLDER
    try:
        listed = list_input(input_path, settings)
        check_same(folder, listed.input, settings)
        state.mkdir(parents=True, exist_ok=True)
        with (
            locked(state / "lock", f"output ({output})"),
            scratch_folder(state) as scratch,
        ):
            # Another run may have begun something else here while this one waited for the lock.
            before = check_same(folder, listed.input, settings) or fixed_settings(settings)
            # Before the folders: without it a later run could not tell what they are. With limits
            # as they were, until what they rejected has been decoded again.
            _write_settings(state, listed.input, before)
            for part in _parts(folder):
                part.mkdir(exist_ok=True)
            remove_leftovers(*_parts(folder))
            again = reasons_of_raised_limits(before, settings)
            summary = _ingest(listed, folder, scratch, settings, again, on_progress)
            _write_settings(state, listed.input, fixed_settings(settings))
            return summary
    except OSError as error:
        raise UserError(f"output ({output}) cannot be written: {write_failure(error)}") from error


def _write_settings(state: Path, input_path: str, settings: Mapping[str, Any]) -> None:
    values = {"format_version": FORMAT_VERSION, "input": input_path, "settings": settings}
    write_json(state / SETTINGS_FILE, values)


def _parts(folder: Path) -> tuple[Path, ...]:
    return folder, folder / CLIPS_FOLDER, folder / REJECTS_FOLDER, folder / STATE_FOLDER


def _ingest(
    listed: SourceList,
    folder: Path,
    scratch: Path,
    settings: IngestSettings,
    again: Set[str],
    on_progress: OnProgress,
) -> IngestSummary:
    done = read_done(folder, CLIPS_FOLDER)
    on_progress(0, len(listed.sources), "listing")
    fingerprints = fingerprint_sources(listed, folder, settings.limits, on_progress)
    plan = make_plan(listed, fingerprints, done, settings, again)
    if plan.units or plan.revisions:
        (folder / MANIFEST).unlink(missing_ok=True)
        (folder / INDEX_FILE).unlink(missing_ok=True)
        revise(folder, CLIPS_FOLDER, plan.revisions, scratch)
        _decode(plan.units, len(listed.sources), folder, scratch, settings, on_progress)
    summary = _summarize(folder, listed, plan, settings)
    _check_outcome(summary, listed, folder, settings)
    _write_index(folder, summary)
    _write_manifest(folder, listed, summary, settings)
    return summary


def _decode(
    units: Sequence[Unit],
    num_sources: int,
    folder: Path,
    scratch: Path,
    settings: IngestSettings,
    on_progress: OnProgress,
) -> None:
    num_done = num_sources - sum(len(unit.sources) for unit in units)
    clips = rejected = 0
    outcomes = run_units(
        [{"name": unit.name, "unit": unit.to_json()} for unit in units],
        UnitIngester,
        (str(folder), settings.model_dump(mode="json"), str(scratch)),
        num_workers=settings.num_workers,
        output=folder,
        rows_folder=CLIPS_FOLDER,
    )
    for number, row in enumerate(outcomes, start=1):
        clips += row["clips"]
        rejected += bool(row["reason"])
        on_progress(num_done + number, num_sources, f"{clips} clips, {rejected} rejected")


def _summarize(
    folder: Path, listed: SourceList, plan: Plan, settings: IngestSettings
) -> IngestSummary:
    """Counts what the shards hold; nothing is taken from what the run believes to have done."""
    columns = ["clip_id", "duration_seconds", "label", "labels", "split", *FLAW_COLUMNS]
    tables = {
        file.stem: read_columns(str(file), columns)
        for file in sorted((folder / CLIPS_FOLDER).glob("*.parquet"))
    }
    clips = pa.concat_tables(tables.values())
    reasons: Counter[str] = Counter()
    rejected = set()
    for file in sorted((folder / REJECTS_FOLDER).glob("*.parquet")):
        table = pq.read_table(file, columns=["source", "reason"], partitioning=None)
        rejected.update(table["source"].to_pylist())
        reasons.update(table["reason"].to_pylist())
    accepted = set(clips["source"].to_pylist())
    assert not accepted & rejected
    assert reasons.total() == len(rejected)
    return IngestSummary(
        sources=len(accepted) + len(rejected),
        accepted=len(accepted),
        rejected=len(rejected),
        rejects_by_reason=dict(sorted(reasons.items())),
        clips=len(clips),
        new_clips=sum(len(tables[unit.name]) for unit in plan.units),
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
    """Names what a reader sees: the clips with their labels and splits, and how they were made."""
    rows = sorted(
        (
            (name, labels if labels and len(labels) > 1 else label, split)
            for name, label, labels, split in zip(
                *(clips[name].to_pylist() for name in ("clip_id", "label", "labels", "split")),
                strict=True,
            )
        ),
        key=lambda row: row[0],
    )
    assert len({row[0] for row in rows}) == len(rows)
    made = {
        name: getattr(settings, name)
        for name in (
            "segment_seconds",
            "min_segment_seconds",
            "frame_rate",
            "short_side",
            "sample_rate",
        )
    }
    if settings.min_source_seconds is not None:  # ids from before there was this setting stay
        made["min_source_seconds"] = settings.min_source_seconds
    text = json.dumps([FORMAT_VERSION, made, rows])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _check_outcome(
    summary: IngestSummary, listed: SourceList, folder: Path, settings: IngestSettings
) -> None:
    # Sources that are gone since an earlier run can be kept, so there may be more.
    assert summary.sources == len(listed.sources) or settings.keep_removed
    reasons = ", ".join(f"{count} {reason}" for reason, count in summary.rejects_by_reason.items())
    if not summary.clips:
        raise UserError(
            f"input ({listed.input}) gives no clip: all {summary.rejected} sources are rejected "
            f"({reasons}); {folder / REJECTS_FOLDER} says why"
        )
    if summary.rejected > settings.max_reject_fraction * summary.sources:
        raise UserError(
            f"{summary.rejected} of {summary.sources} sources are rejected ({reasons}), more than "
            f"max_reject_fraction ({settings.max_reject_fraction:g}); "
            f"{folder / REJECTS_FOLDER} says why"
        )


def _write_index(folder: Path, summary: IngestSummary) -> None:
    """Leaves the index of the clips unless it is there."""
    clips = folder / CLIPS_FOLDER
    there = {"dataset_id": summary.dataset_id, "clips": summary.clips}
    if read_index(str(folder), str(clips), there) is None:
        shards = sorted(str(file) for file in clips.glob("*.parquet"))
        write_index(folder, summary.dataset_id, read_shards(shards))


def _write_manifest(
    folder: Path, listed: SourceList, summary: IngestSummary, settings: IngestSettings
) -> None:
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


def _holds(file: Path, values: Mapping[str, Any]) -> bool:
    """Whether a file of JSON is there, whole, and says just this."""
    try:
        return bool(json.loads(file.read_text()) == values)
    except (FileNotFoundError, ValueError):
        return False

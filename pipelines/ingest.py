"""From media to a clip dataset: fingerprint -> plan -> decode, on Ray Data.

Ray Data schedules, bounds and retries; the shards are ours (`shards`), because each unit must be
written exactly once however the run ends. The manifest is written last: a folder without one is
not a dataset yet, and the same call completes it.
"""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from pipelines.clip_dataset import ClipDataset
from pipelines.config import IngestSettings
from pipelines.corpora import list_input
from pipelines.errors import UserError
from pipelines.fingerprints import fingerprint_sources
from pipelines.ingest_plan import (
    SETTINGS_FILE,
    STATE_FOLDER,
    Unit,
    check_same,
    fixed_settings,
    plan_units,
    read_done,
    remove_incomplete,
)
from pipelines.ingest_unit import UnitIngester
from pipelines.progress import OnProgress
from pipelines.schema import CLIPS_FOLDER, FORMAT_VERSION, MANIFEST, REJECTS_FOLDER
from pipelines.shards import locked, remove_leftovers, write_failure, write_json
from pipelines.sources import SourceList

MAX_ACTOR_RESTARTS = 3
"""Times that Ray starts a dead worker again, and gives it its unit again."""


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
    dataset_id: str
    ignored: dict[str, int]
    """Files of the input that are no media, by ending."""


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
    """
    folder = Path(output).absolute()
    try:
        listed = list_input(input_path, settings)
        check_same(folder, listed.input, settings)
        state = folder / STATE_FOLDER
        for part in _parts(folder):
            part.mkdir(parents=True, exist_ok=True)
        with locked(state / "lock", f"output ({output})"):
            try:
                remove_leftovers(*_parts(folder))
                write_json(
                    state / SETTINGS_FILE,
                    {"input": listed.input, "settings": fixed_settings(settings)},
                )
                return _ingest(listed, folder, settings, on_progress)
            finally:
                # Of units that were given up; what is left by a kill, the next run removes.
                remove_leftovers(*_parts(folder))
    except OSError as error:
        raise UserError(f"output ({output}) cannot be written: {write_failure(error)}") from error


def _parts(folder: Path) -> tuple[Path, ...]:
    return folder, folder / CLIPS_FOLDER, folder / REJECTS_FOLDER, folder / STATE_FOLDER


def _ingest(
    listed: SourceList, folder: Path, settings: IngestSettings, on_progress: OnProgress
) -> IngestSummary:
    done = read_done(folder)
    remove_incomplete(folder, done)
    on_progress(0, len(listed.sources), "listing")
    fingerprints = fingerprint_sources(listed, folder, settings.limits, on_progress)
    units = plan_units(listed, fingerprints, done, settings)
    new_clips = 0
    if units:
        (folder / MANIFEST).unlink(missing_ok=True)
        new_clips = _decode(units, len(listed.sources), folder, settings, on_progress)
    summary = _summarize(folder, listed, new_clips, settings)
    _check_outcome(summary, listed, folder, settings)
    if units or not (folder / MANIFEST).exists():
        _write_manifest(folder, listed, summary, settings)
    return summary


def _decode(
    units: Sequence[Unit],
    num_sources: int,
    folder: Path,
    settings: IngestSettings,
    on_progress: OnProgress,
) -> int:
    """Runs the units on Ray Data and gives the number of clips that came."""
    tally: Counter[str] = Counter()
    tally["sources"] = num_sources - sum(len(unit.sources) for unit in units)
    for row in _outcomes(units, folder, settings):
        if row["failed"]:
            raise UserError(f"output ({folder}) cannot be written: {row['failed']}")
        tally["sources"] += 1
        tally["clips"] += row["clips"]
        tally["rejected"] += bool(row["reason"])
        on_progress(
            tally["sources"], num_sources, f"{tally['clips']} clips, {tally['rejected']} rejected"
        )
    return tally["clips"]


def _outcomes(
    units: Sequence[Unit], folder: Path, settings: IngestSettings
) -> Iterator[dict[str, Any]]:
    """The graph: one row for each source as it is done."""
    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    num_workers = max(1, min(settings.num_workers or num_cpus, len(units)))
    with warnings.catch_warnings():
        # Ray wants to rename how `max_restarts` is given and has no other name for it yet.
        warnings.filterwarnings("ignore", message=".*ray_remote_args")
        # 1:N, CPU-bound: a decoder a core. One unit at a time in an actor, so that none waits
        # behind a long one while another actor is idle. The pool works with the actors that have
        # started, so a busy cluster makes it slow and not stuck.
        outcomes = ray.data.from_items(
            [{"unit": unit.to_json()} for unit in units], override_num_blocks=len(units)
        ).flat_map(
            UnitIngester,
            fn_constructor_args=(str(folder), settings.model_dump(mode="json")),
            compute=ray.data.ActorPoolStrategy(size=num_workers, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            max_restarts=MAX_ACTOR_RESTARTS,
            max_task_retries=MAX_ACTOR_RESTARTS,
        )
    # The rows are news of a few bytes: each leaves its worker at once, not with its unit.
    outcomes.context.target_max_block_size = 1
    outcomes.context.enable_progress_bars = False
    yield from outcomes.iter_rows()


def _summarize(
    folder: Path, listed: SourceList, new_clips: int, settings: IngestSettings
) -> IngestSummary:
    """Counts what the shards hold; nothing is taken from what the run believes to have done."""
    columns = ["clip_id", "source", "duration_seconds", "label", "labels", "split"]
    clips = ClipDataset(str(folder), {}).small_columns(columns)
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
        new_clips=new_clips,
        media_seconds=sum(clips["duration_seconds"].to_pylist()),
        dataset_id=_dataset_id(clips, settings),
        ignored=listed.ignored,
    )


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
    text = json.dumps([FORMAT_VERSION, made, rows])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _check_outcome(
    summary: IngestSummary, listed: SourceList, folder: Path, settings: IngestSettings
) -> None:
    # Sources that are gone since an earlier run are still counted, so there may be more.
    assert summary.sources >= len(listed.sources)
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


def _write_manifest(
    folder: Path, listed: SourceList, summary: IngestSummary, settings: IngestSettings
) -> None:
    counts = asdict(summary)
    del counts["new_clips"], counts["dataset_id"], counts["ignored"]
    write_json(
        folder / MANIFEST,
        {
            "format_version": FORMAT_VERSION,
            "dataset_id": summary.dataset_id,
            "input": listed.input,
            **counts,
            "ignored": listed.ignored,
            "settings": settings.model_dump(mode="json", include=set(IngestSettings.model_fields)),
        },
    )

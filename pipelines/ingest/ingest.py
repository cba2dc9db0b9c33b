"""From media to a clip dataset: fingerprint -> plan -> decode, on Ray Data.

The shards are ours (`shards`), because each unit must be written exactly once however the run ends.
The manifest is written last: a folder without one is not a dataset yet, and the same call completes
it. A call on a complete dataset whose input has changed does only what is different.
"""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

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
from pipelines.errors import UserError
from pipelines.files import locked, remove_leftovers, scratch_folder, write_failure, write_json
from pipelines.ingest.plan import Unit, make_plan
from pipelines.ingest.state import (
    SETTINGS_FILE,
    check_same,
    fixed_settings,
    reasons_of_raised_limits,
)
from pipelines.ingest.summary import IngestSummary, check_outcome, summarize, write_manifest
from pipelines.ingest.unit_graph import run_units
from pipelines.ingest.unit_shards import read_done, revise
from pipelines.ingest.worker import UnitIngester
from pipelines.progress import OnProgress
from pipelines.sources.fingerprints import fingerprint_sources
from pipelines.sources.listing import list_input
from pipelines.sources.source import SourceList


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
    summary = summarize(folder, listed, plan, settings)
    check_outcome(summary, listed, folder, settings)
    _write_index(folder, summary)
    write_manifest(folder, listed, summary, settings)
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
    for number, outcome in enumerate(outcomes, start=1):
        clips += outcome.clips
        rejected += bool(outcome.reason)
        on_progress(num_done + number, num_sources, f"{clips} clips, {rejected} rejected")


def _write_index(folder: Path, summary: IngestSummary) -> None:
    """Leaves the index of the clips unless it is there."""
    clips = folder / CLIPS_FOLDER
    there = {"dataset_id": summary.dataset_id, "clips": summary.clips}
    if read_index(str(folder), str(clips), there) is None:
        shards = sorted(str(file) for file in clips.glob("*.parquet"))
        write_index(folder, summary.dataset_id, read_shards(shards))

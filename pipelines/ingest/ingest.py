"""Ingest of media into a clip dataset on Ray Data: fingerprint -> plan -> decode.

Workers write the shards themselves (`shards`), so that each unit is written exactly once however
the run ends. The manifest is written last. A folder without a manifest is incomplete, and the same
call completes it. If the input of a complete dataset changes, a call processes only the changes.
"""

from collections.abc import Iterator, Mapping, Set
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
from pipelines.dataset.shards import shard_names
from pipelines.errors import UserError
from pipelines.files import locked, remove_leftovers, scratch_folder, write_failure, write_json
from pipelines.ingest.plan import IngestPlan, make_plan
from pipelines.ingest.state import (
    SETTINGS_FILE,
    check_same,
    fixed_settings,
    reasons_of_raised_limits,
)
from pipelines.ingest.summary import IngestSummary, check_outcome, summarize, write_manifest
from pipelines.ingest.unit import Unit
from pipelines.ingest.unit_graph import run_units
from pipelines.ingest.unit_shards import read_done, revise
from pipelines.ingest.worker import UnitIngester
from pipelines.progress import OnProgress
from pipelines.quantities import counted
from pipelines.shared import check_shared
from pipelines.sources.fingerprints import fingerprint_sources
from pipelines.sources.listing import list_input
from pipelines.sources.source import SourceList
from pipelines.sources.spool import Spool
from pipelines.storage import AnyPath, path_of


def check_ingest(input_path: str | None, output: str, settings: IngestSettings) -> None:
    """Checks whether an ingest can start, without writing anything.

    Args:
        input_path: Input of the ingest, or None if it does not exist yet.
        output: Folder of the clip dataset.
        settings: Settings of the ingest.

    Raises:
        UserError: For the same reasons as `ingest`.
    """
    listed = list_input(input_path, settings) if input_path is not None else None
    check_same(path_of(output), listed.input if listed else None, settings)


def ingest(
    input_path: str, output: str, settings: IngestSettings, *, on_progress: OnProgress
) -> IngestSummary:
    """Turns media into a clip dataset, or completes one. Ray must be connected.

    Raises:
        UserError: If the input holds no media, the output holds something else or cannot be
            written, or rejects exceed `max_reject_fraction` or leave no clips.
        JobFailed: If a unit repeatedly crashes its worker.
    """
    folder = path_of(output).absolute()
    state = folder / STATE_FOLDER
    try:
        listed = list_input(input_path, settings)
        check_same(folder, listed.input, settings)
        check_shared(str(folder))
        state.mkdir(parents=True, exist_ok=True)
        with (
            locked(state / "lock", f"output ({output})"),
            scratch_folder(state) as scratch,
        ):
            # Another run may have written to the output while this run waited for the lock.
            before = check_same(folder, listed.input, settings) or fixed_settings(settings)
            # The settings come before the folders, so that a later run can identify them. They
            # keep the old limits until the sources those limits rejected are decoded again.
            _write_settings(state, listed.input, before)
            for part in _parts(folder):
                part.mkdir(exist_ok=True)
            remove_leftovers(*_parts(folder))
            again = reasons_of_raised_limits(before, settings)
            summary = _ingest(listed, folder, scratch, settings, again, on_progress)
            _write_settings(state, listed.input, fixed_settings(settings))
            # Copies of duplicates and of sources that earlier runs decoded.
            Spool(max_bytes=settings.limits.max_spool_bytes).forget()
            return summary
    except OSError as error:
        raise UserError(f"output ({output}) cannot be written: {write_failure(error)}") from error


def _write_settings(state: AnyPath, input_path: str, settings: Mapping[str, Any]) -> None:
    values = {"format_version": FORMAT_VERSION, "input": input_path, "settings": settings}
    write_json(state / SETTINGS_FILE, values)


def _parts(folder: AnyPath) -> tuple[AnyPath, ...]:
    return folder, folder / CLIPS_FOLDER, folder / REJECTS_FOLDER, folder / STATE_FOLDER


def _ingest(
    listed: SourceList,
    folder: AnyPath,
    scratch: AnyPath,
    settings: IngestSettings,
    again: Set[str],
    on_progress: OnProgress,
) -> IngestSummary:
    plan = _plan(listed, folder, settings, again, on_progress)
    new_units = [unit.name for unit in plan.units]
    if plan.units or plan.revisions:
        (folder / MANIFEST).unlink(missing_ok=True)
        (folder / INDEX_FILE).unlink(missing_ok=True)
        revise(folder, CLIPS_FOLDER, plan.revisions, scratch)
        _decode(plan.units, len(listed.sources), folder, scratch, settings, on_progress)
    summary = summarize(folder, listed, new_units, plan.changes, settings)
    check_outcome(summary, listed, folder, settings)
    _write_index(folder, summary)
    write_manifest(folder, listed, summary, settings)
    return summary


def _plan(
    listed: SourceList,
    folder: AnyPath,
    settings: IngestSettings,
    again: Set[str],
    on_progress: OnProgress,
) -> IngestPlan:
    """Plans the work. What it needs for that, as large as the plan itself, is freed."""
    done = read_done(folder, CLIPS_FOLDER)
    on_progress(0, len(listed.sources), "listing")
    fingerprints = fingerprint_sources(listed, folder, settings.limits, on_progress)
    return make_plan(listed, fingerprints, done, settings, again)


def _taken(units: list[Unit]) -> Iterator[dict[str, str]]:
    """Yields units as rows, and frees each one: the file of units holds them from then on."""
    units.reverse()
    while units:
        unit = units.pop()
        yield {"name": unit.name, "unit": unit.to_json()}


def _decode(
    units: list[Unit],
    num_sources: int,
    folder: AnyPath,
    scratch: AnyPath,
    settings: IngestSettings,
    on_progress: OnProgress,
) -> None:
    num_done = num_sources - sum(len(unit.sources) for unit in units)
    progress = run_units(
        _taken(units),
        UnitIngester,
        (str(folder), settings.model_dump(mode="json"), str(scratch)),
        num_workers=settings.num_workers,
        output=folder,
        rows_folder=CLIPS_FOLDER,
        scratch=scratch,
    )
    for done in progress:
        note = f"{counted(done.clips, 'clip')}, {done.rejected:,} rejected"
        on_progress(num_done + done.sources, num_sources, note)


def _write_index(folder: AnyPath, summary: IngestSummary) -> None:
    """Writes the index of the clips unless it exists."""
    clips = folder / CLIPS_FOLDER
    there = {"dataset_id": summary.dataset_id, "clips": summary.clips}
    if read_index(str(folder), str(clips), there) is None:
        shards = [str(clips / name) for name in shard_names(clips)]
        write_index(folder, summary.dataset_id, read_shards(shards))

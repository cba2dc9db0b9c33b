"""The embedding job, which runs a registered model over media or stored clips on Ray Data.

The job shares the graph (`unit_graph`), fingerprints, unit plan, shards and restart rules of
`ingest`. A unit is a set of sources or a shard of a clip dataset. The manifest is written last.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.config.embed import EmbedConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.schema import MANIFEST, REJECTS_FOLDER, STATE_FOLDER
from pipelines.embed.plan import (
    EmbedSummary,
    check_rates,
    check_same_output,
    identity_of,
    media_units,
    open_dataset,
    stored_units,
    summarize,
)
from pipelines.embed.worker import EMBEDDINGS_FOLDER, UnitEmbedder
from pipelines.errors import UserError
from pipelines.files import locked, remove_leftovers, scratch_folder, write_failure, write_json
from pipelines.ingest.state import SETTINGS_FILE
from pipelines.ingest.unit_graph import run_units
from pipelines.ingest.unit_shards import Revision, read_done, revise
from pipelines.progress import OnProgress
from pipelines.quantities import counted
from pipelines.registry.pull import fetch
from pipelines.registry.uri import EncoderVersion, resolve_model
from pipelines.shared import check_shared
from pipelines.sources.listing import list_sources
from pipelines.sources.spool import Spool
from pipelines.storage import AnyPath, path_of
from pipelines.tracking.server import tracking_uri

FORMAT_VERSION = 1


def check_embed(config: EmbedConfig) -> list[str]:
    """Returns every error that blocks an embedding job, without starting anything."""
    mistakes = []
    version = None
    try:
        version = resolve_model(config.model, config.tracking)
    except UserError as error:
        mistakes.append(str(error))
    try:
        dataset = open_dataset(config.input)
        if dataset is None:
            list_sources(config.input, "none")
        if version is not None:
            check_rates(config, dataset, version)
            check_same_output(path_of(config.output), identity_of(config, dataset, version))
    except UserError as error:
        mistakes.append(str(error))
    return mistakes


def embed(config: EmbedConfig, on_progress: OnProgress) -> EmbedSummary:
    """Embeds an input, or completes an earlier call. Ray must be connected.

    Raises:
        UserError: If the model does not exist or was changed, the input holds no media, or the
            output holds something else or cannot be written.
        JobFailed: If workers repeatedly crash, or the model does not load.
    """
    version = resolve_model(config.model, config.tracking)
    with TemporaryDirectory(prefix="xkd-model-") as copy:  # before any worker starts
        fetch(version, tracking_uri(config.tracking), Path(copy))
    dataset = open_dataset(config.input)
    check_rates(config, dataset, version)
    output = path_of(config.output)
    try:
        identity = identity_of(config, dataset, version)
        check_same_output(output, identity)
        check_shared(str(output))
        state = output / STATE_FOLDER
        state.mkdir(parents=True, exist_ok=True)
        with (
            locked(state / "lock", f"output ({output})"),
            scratch_folder(state) as scratch,
        ):
            check_same_output(output, identity)  # another run may have written here
            # The settings come before the folders, so that a later run can identify them.
            write_json(state / SETTINGS_FILE, identity)
            folders = (output / EMBEDDINGS_FOLDER, output / REJECTS_FOLDER)
            for folder in folders:
                folder.mkdir(exist_ok=True)
            remove_leftovers(output, state, *folders)
            summary = _embed(config, dataset, version, scratch, on_progress)
            # Copies of duplicates and of sources that earlier runs embedded.
            Spool(max_bytes=config.limits.max_spool_bytes).forget()
            return summary
    except OSError as error:
        raise UserError(f"output ({output}) cannot be written: {write_failure(error)}") from error


def _embed(
    config: EmbedConfig,
    dataset: ClipDataset | None,
    version: EncoderVersion,
    scratch: AnyPath,
    on_progress: OnProgress,
) -> EmbedSummary:
    output = path_of(config.output)
    done = read_done(output, EMBEDDINGS_FOLDER)
    revisions: dict[str, Revision] = {}
    if dataset is not None:
        units = stored_units(dataset, done)
        num_sources = len(set(dataset.index.source.tolist()))
    else:
        units, revisions, num_sources = media_units(config, version, done, on_progress)
    if units or revisions:
        (output / MANIFEST).unlink(missing_ok=True)
        revise(output, EMBEDDINGS_FOLDER, revisions, scratch)
        _run(units, num_sources, scratch, config, version, on_progress)
    summary = summarize(output, version, {unit["name"] for unit in units})
    assert summary.sources == num_sources
    if not (output / MANIFEST).exists():
        counts = asdict(summary)
        del counts["new_clips"], counts["output"]
        identity = identity_of(config, dataset, version)
        write_json(
            output / MANIFEST, {"embeddings_format_version": FORMAT_VERSION, **identity, **counts}
        )
    return summary


def _run(
    units: Sequence[dict[str, Any]],
    num_sources: int,
    scratch: AnyPath,
    config: EmbedConfig,
    version: EncoderVersion,
    on_progress: OnProgress,
) -> None:
    num_done = num_sources - sum(unit["sources"] for unit in units)
    progress = run_units(
        units,
        UnitEmbedder,
        (
            config.output,
            str(scratch),
            tracking_uri(config.tracking),
            version,
            config.limits.model_dump(mode="json"),
            config.decoder.model_dump(mode="json"),
            config.batch_size,
        ),
        num_workers=config.num_workers,
        output=path_of(config.output),
        rows_folder=EMBEDDINGS_FOLDER,
        scratch=scratch,
    )
    for done in progress:
        note = f"{counted(done.clips, 'embedding')}, {done.rejected:,} rejected"
        on_progress(num_done + done.sources, num_sources, note)

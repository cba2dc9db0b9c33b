"""From media or stored clips to embeddings of a registered model, on Ray Data.

The graph, the fingerprints, the plan of units, the shards and the rules for going on are those of
`ingest`; a unit is a set of sources, or a shard of a clip dataset. The manifest is written last.
"""

import errno
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.data

from pipelines.clip_dataset import ClipDataset
from pipelines.config import EmbedConfig
from pipelines.embed_plan import (
    EmbedSummary,
    check_rates,
    check_same_output,
    identity_of,
    media_units,
    open_dataset,
    remove_incomplete,
    stored_units,
    summarize,
)
from pipelines.embed_unit import EMBEDDINGS_FOLDER, UnitEmbedder
from pipelines.errors import JobFailed, UserError
from pipelines.ingest_plan import SETTINGS_FILE, STATE_FOLDER
from pipelines.model_uri import EncoderVersion, resolve_model
from pipelines.progress import OnProgress
from pipelines.schema import MANIFEST, REJECTS_FOLDER
from pipelines.shards import locked, remove_leftovers, write_json
from pipelines.sources import list_sources
from pipelines.tracking import tracking_uri

FORMAT_VERSION = 1
MAX_ACTOR_RESTARTS = 3
"""Times that Ray starts a dead worker again, and gives it its unit again."""


def check_embed(config: EmbedConfig) -> list[str]:
    """All that stands in the way of an embedding job, found without starting anything."""
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
            check_same_output(Path(config.output), identity_of(config, dataset, version))
    except UserError as error:
        mistakes.append(str(error))
    return mistakes


def embed(config: EmbedConfig, on_progress: OnProgress) -> EmbedSummary:
    """Embeds an input, or completes what an earlier call began; Ray is connected.

    Raises:
        UserError: if the model is not there, the input holds no media, or the output holds
            something else or cannot be written.
        JobFailed: if the workers die again and again, or the model does not load.
    """
    version = resolve_model(config.model, config.tracking)
    dataset = open_dataset(config.input)
    check_rates(config, dataset, version)
    output = Path(config.output)
    try:
        identity = identity_of(config, dataset, version)
        check_same_output(output, identity)
        state = output / STATE_FOLDER
        folders = (output / EMBEDDINGS_FOLDER, output / REJECTS_FOLDER, state)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        with locked(state / "lock", f"output ({output})"):
            remove_leftovers(output, *folders)
            write_json(state / SETTINGS_FILE, identity)
            return _embed(config, dataset, version, on_progress)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        reason = "the disk is full; what is complete stays" if full else error.strerror or error
        raise UserError(f"output ({output}) cannot be written: {reason}") from error
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines()[-1][:300]
        raise JobFailed(
            f"{version.uri} could not embed {config.input}: {last}. "
            "What is complete stays, and the same command goes on from there"
        ) from error


def _embed(
    config: EmbedConfig,
    dataset: ClipDataset | None,
    version: EncoderVersion,
    on_progress: OnProgress,
) -> EmbedSummary:
    output = Path(config.output)
    remove_incomplete(output)
    if dataset is not None:
        units = stored_units(dataset, output)
        num_sources = len(set(dataset.index.source.tolist()))
    else:
        units, num_sources = media_units(config, version, on_progress)
    new_clips = 0
    if units:
        (output / MANIFEST).unlink(missing_ok=True)
        new_clips = _run(units, num_sources, config, version, on_progress)
    summary = summarize(output, version, new_clips)
    assert summary.sources >= num_sources
    if units or not (output / MANIFEST).exists():
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
    config: EmbedConfig,
    version: EncoderVersion,
    on_progress: OnProgress,
) -> int:
    """Runs the units on Ray Data and gives the number of embeddings that came."""
    num_done = num_sources - sum(unit["sources"] for unit in units)
    clips = rejected = 0
    for number, row in enumerate(_outcomes(units, config, version), start=1):
        if row["failed"]:
            raise UserError(f"output ({config.output}) cannot be written: {row['failed']}")
        clips += row["clips"]
        rejected += bool(row["reason"])
        note = f"{clips} embeddings, {rejected} rejected"
        on_progress(num_done + number, num_sources, note)
    return clips


def _outcomes(
    units: Sequence[dict[str, Any]], config: EmbedConfig, version: EncoderVersion
) -> Iterator[dict[str, Any]]:
    """The graph: one row for each source as it is done."""
    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    num_workers = max(1, min(config.num_workers or num_cpus, len(units)))
    with warnings.catch_warnings():
        # Ray wants to rename how `max_restarts` is given and has no other name for it yet.
        warnings.filterwarnings("ignore", message=".*ray_remote_args")
        # 1:N, CPU-bound: decoder and encoder share a core; an actor, because the model loads once.
        # One unit at a time in an actor, so that none waits behind a long one.
        outcomes = ray.data.from_items(list(units), override_num_blocks=len(units)).flat_map(
            UnitEmbedder,
            fn_constructor_args=(
                config.output,
                tracking_uri(config.tracking),
                version,
                config.limits.model_dump(mode="json"),
                config.batch_size,
            ),
            compute=ray.data.ActorPoolStrategy(size=num_workers, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            max_restarts=MAX_ACTOR_RESTARTS,
            max_task_retries=MAX_ACTOR_RESTARTS,
        )
    # The rows are news of a few bytes: each leaves its worker at once, not with its unit.
    outcomes.context.target_max_block_size = 1
    outcomes.context.enable_progress_bars = False
    yield from outcomes.iter_rows()

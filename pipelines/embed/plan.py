"""The plan and summary of an embedding job: its units, output identity and counts.

Sources are grouped into units as in an ingest. Each shard of a clip dataset is a unit.
"""

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.config.embed import EmbedConfig
from pipelines.config.ingest import IngestSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.schema import CLIPS_FOLDER, MANIFEST, REJECTS_FOLDER, STATE_FOLDER
from pipelines.dataset.shards import open_parquet, shard_names
from pipelines.embed.worker import EMBEDDINGS_FOLDER
from pipelines.errors import UserError
from pipelines.filesystems import is_file, is_folder, is_web
from pipelines.ingest.plan import make_plan
from pipelines.ingest.state import check_unchanged, read_state
from pipelines.ingest.unit_shards import Revision, StoredUnits
from pipelines.progress import OnProgress
from pipelines.registry.uri import EncoderVersion
from pipelines.sources.fingerprints import fingerprint_sources
from pipelines.sources.listing import list_sources
from pipelines.storage import AnyPath, path_of


@dataclass(frozen=True)
class EmbedSummary:
    """Contents of a folder of embeddings, and what this call added."""

    sources: int
    accepted: int
    rejected: int
    rejects_by_reason: dict[str, int]
    clips: int
    new_clips: int
    model: str
    """URI of the model, with its version."""
    output: str


def open_dataset(location: str) -> ClipDataset | None:
    """Opens the input if it is a clip dataset. Media may have a manifest of their own.

    Raises:
        UserError: If the dataset is unreadable or incomplete.
    """
    if is_web(location):
        return None
    is_dataset = is_file(f"{location}/{MANIFEST}") and is_folder(f"{location}/{CLIPS_FOLDER}")
    is_begun = is_folder(f"{location}/{STATE_FOLDER}")
    return ClipDataset.open(location) if is_dataset or is_begun else None


def check_rates(config: EmbedConfig, dataset: ClipDataset | None, version: EncoderVersion) -> None:
    """Checks that stored clips have the rate that the model expects.

    Raises:
        UserError: If the rates differ.
    """
    if dataset is None:
        return
    rates = (
        ("frame_rate", dataset.frame_rate, version.frame_rate)
        if version.modality == "video"
        else ("sample_rate", dataset.sample_rate, version.sample_rate)
    )
    name, there, needed = rates
    if there != needed:
        raise UserError(
            f"input ({config.input}) has clips of {name} {there:g}, "
            f"but {version.uri} takes {needed:g}"
        )


def identity_of(
    config: EmbedConfig, dataset: ClipDataset | None, version: EncoderVersion
) -> dict[str, Any]:
    """Returns the model, input and limits that identify a folder of embeddings."""
    return {
        "model": version.uri,
        "input": config.input,
        "dataset_id": dataset.dataset_id if dataset else None,
        **{f"limits.{name}": value for name, value in config.limits.model_dump().items()},
    }


def check_same_output(output: AnyPath, identity: dict[str, Any]) -> None:
    """Checks that a folder is empty or holds embeddings of the same model and input.

    Raises:
        UserError: If the folder holds anything else.
    """
    there = read_state(output, "be empty or hold embeddings")
    if there is not None:
        if "model" not in there:
            raise UserError(
                f"output ({output}) must be empty or hold embeddings, but holds a clip dataset"
            )
        # Settings that were added later have their default in older outputs.
        there = identity | there
        check_unchanged(f"output ({output}) holds something else", there, identity)


def stored_units(dataset: ClipDataset, done: StoredUnits) -> list[dict[str, Any]]:
    """Returns one unit for each shard without embeddings."""
    begin = len(f"{dataset.path}/{CLIPS_FOLDER}/")
    return [
        {
            "name": shard[begin:].removesuffix(".parquet"),
            "shard": shard,
            "unit": "",
            "sources": _num_sources(shard),
        }
        for shard in dataset.shards
        if shard[begin:] not in done.shards
    ]


def _num_sources(shard: str) -> int:
    with open_parquet(shard) as file:
        return len(set(file.read(columns=["source"])["source"].to_pylist()))


def media_units(
    config: EmbedConfig, version: EncoderVersion, done: StoredUnits, on_progress: OnProgress
) -> tuple[list[dict[str, Any]], dict[str, Revision], int]:
    """Plans the work for media: units, revisions, and the total number of sources."""
    listed = list_sources(config.input, "none")
    on_progress(0, len(listed.sources), "listing")
    fingerprints = fingerprint_sources(listed, path_of(config.output), config.limits, on_progress)
    settings = IngestSettings(
        segment_seconds=version.clips.segment_seconds,
        min_segment_seconds=version.clips.min_segment_seconds,
        frame_rate=version.frame_rate,
        short_side=version.clips.short_side,
        sample_rate=version.sample_rate,
        limits=config.limits,
    )
    plan = make_plan(listed, fingerprints, done, settings)
    units = [
        {"name": unit.name, "shard": "", "unit": unit.to_json(), "sources": len(unit.sources)}
        for unit in plan.units
    ]
    return units, plan.revisions, len(listed.sources)


def _read(file: AnyPath, columns: list[str]) -> pa.Table:
    with open_parquet(str(file)) as shard:
        return shard.read(columns=columns, use_threads=False)


def summarize(output: AnyPath, version: EncoderVersion, new_units: Set[str]) -> EmbedSummary:
    """Counts the contents of the shards, independently of what the run reported."""
    num_clips = new_clips = 0
    accepted: set[str] = set()
    rejected: set[str] = set()
    reasons: Counter[str] = Counter()
    for name in shard_names(output / EMBEDDINGS_FOLDER):
        sources = _read(output / EMBEDDINGS_FOLDER / name, ["source"])["source"].to_pylist()
        num_clips += len(sources)
        new_clips += len(sources) if name.removesuffix(".parquet") in new_units else 0
        accepted.update(sources)
    for name in shard_names(output / REJECTS_FOLDER):
        table = _read(output / REJECTS_FOLDER / name, ["source", "reason"])
        rejected.update(table["source"].to_pylist())
        reasons.update(table["reason"].to_pylist())
    assert not accepted & rejected
    return EmbedSummary(
        sources=len(accepted) + len(rejected),
        accepted=len(accepted),
        rejected=len(rejected),
        rejects_by_reason=dict(sorted(reasons.items())),
        clips=num_clips,
        new_clips=new_clips,
        model=version.uri,
        output=str(output),
    )

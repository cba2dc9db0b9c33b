"""The review of a clip dataset: its contents and its doubtful clips, as numbers and pictures.

`review` collects it and `dataset_page` shows it. Near-duplicates between training clips and
held-out clips, of this dataset or another one, are leaks. Their ids go into a file that
pretraining excludes (`exclude=FILE`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.config.dataset import DatasetSettings
from pipelines.dataset.alike import find_alike
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.leaks import NamedPair, duplicate_ids, leaked_ids
from pipelines.dataset.review_tables import (
    COLUMNS,
    contact_sheet,
    count_tables,
    frequencies,
    labels_by_split,
    streams_held,
)
from pipelines.dataset.scan import scan_dataset
from pipelines.dataset.shown import (
    AllClips,
    ShownClip,
    ShownPair,
    ShownReject,
    Thumbnails,
    shown_rejects,
)
from pipelines.dataset.source_flaws import SourceFlaws, count_flaws
from pipelines.filesystems import list_files
from pipelines.progress import OnProgress

SILENT_PEAK = 0.001
"""Peak below which a clip is silent, as a share of full scale (-60 dB)."""
STATIC_MOTION = 1.0
"""Motion below which a clip is static, as a mean difference in gray levels of 256."""


@dataclass(frozen=True)
class Review:
    """The contents of the page."""

    path: str
    manifest: Mapping[str, Any]
    stored_bytes: int
    num_sources: int
    seconds: float
    streams: Mapping[str, int]
    splits: Mapping[str, int]
    labels: Sequence[tuple[str, Mapping[str, int]]]
    """Number of clips of each label by split, the most frequent label first."""
    tables: Mapping[str, Mapping[str, int]]
    """Counts by property of sources and clips, such as the codec."""
    flaws: SourceFlaws
    rejects: Mapping[str, Sequence[ShownReject]]
    silent: Sequence[str]
    """Ids of silent clips."""
    static: Sequence[str]
    shown_silent: Sequence[ShownClip]
    shown_static: Sequence[ShownClip]
    sheet: Sequence[ShownClip]
    against: Sequence[str]
    """Paths of the other datasets in the comparison."""
    pairs: Sequence["NamedPair"]
    shown_pairs: Sequence[ShownPair]
    leaks: Sequence[str]
    """Ids of training clips that duplicate held-out clips, directly or through other clips."""
    duplicates: Sequence[str]
    """Ids of all but one clip of each group of near-duplicates in training."""


def review(dataset: ClipDataset, settings: DatasetSettings, on_progress: OnProgress) -> Review:
    """Reviews all clips; requires a connection to Ray."""
    table = dataset.small_columns(COLUMNS)
    scan = scan_dataset(dataset, on_progress)
    others = [ClipDataset.open(location) for location in settings.against]
    every = AllClips.gather(dataset, table, scan, others, on_progress)
    alike = find_alike(every.frames, every.sounds, every.source_numbers())
    held_out = every.held_out(settings.train_splits)
    is_leak = [pair.is_copy and held_out[pair.first] != held_out[pair.second] for pair in alike]
    ids = table["clip_id"].to_pylist()
    silent, static = (
        np.flatnonzero(scan.peak < SILENT_PEAK),
        np.flatnonzero(scan.motion < STATIC_MOTION),
    )
    show = Thumbnails(every, settings.max_shown)
    return Review(
        path=dataset.path,
        manifest=dataset.manifest,
        stored_bytes=sum(entry.byte_size or 0 for entry in list_files(f"{dataset.path}/clips")),
        num_sources=len(set(table["source"].to_pylist())),
        seconds=float(np.sum(table["duration_seconds"].to_numpy())),
        streams=streams_held(table),
        splits=frequencies(split or "no split" for split in table["split"].to_pylist()),
        labels=labels_by_split(table),
        tables=count_tables(table),
        flaws=count_flaws(table),
        rejects=shown_rejects(dataset),
        silent=[ids[row] for row in silent],
        static=[ids[row] for row in static],
        shown_silent=show.clips(silent, [f"peak {scan.peak[row]:.5f}" for row in silent]),
        shown_static=show.clips(static, [f"motion {scan.motion[row]:.2f}" for row in static]),
        sheet=show.clips(contact_sheet(table, settings.max_shown), None),
        against=[other.path for other in others],
        pairs=[every.named(pair, leak) for pair, leak in zip(alike, is_leak, strict=True)],
        shown_pairs=show.pairs(alike, is_leak),
        leaks=leaked_ids(alike, held_out, every.ids),
        duplicates=duplicate_ids(alike, held_out, every.ids),
    )

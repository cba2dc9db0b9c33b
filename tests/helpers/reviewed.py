"""A dataset with a leak, a duplicate, a static and a silent clip, and rejects."""

import json

import numpy as np

from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.schema import REJECTS
from pipelines.dataset.shards import ShardWriter
from pipelines.ingest.unit import UnitSource
from pipelines.ingest.worker import reject_row
from tests.helpers.clip_datasets import write_dataset
from tests.helpers.media import write_numbered
from tests.helpers.scenes import scene


def scenes(clip, num_frames, size):
    """Clip 9 is clip 0 in other light, clip 5 is clip 4 and clip 3 stands still."""
    seed = {9: 0, 5: 4}.get(clip, clip)
    shown = scene(seed, num_frames / 8, (96, 128))
    times = 96 // size[0]
    shown = shown.reshape(num_frames, size[0], times, size[1], times, 3).mean(axis=(2, 4))
    if clip == 3:
        shown = np.repeat(shown[:1], num_frames, axis=0)
    return (shown * (0.7 if clip == 9 else 1.0)).astype(np.uint8)


def write_reviewed(folder):
    """Ten clips with a leak, a duplicate, a static and a silent one, and two rejects."""
    dataset = write_dataset(
        folder / "clips",
        10,
        num_frames=24,
        size=lambda _: (48, 64),
        frames=scenes,
        has_audio=lambda clip: clip != 2,
        split=lambda clip: "test" if clip > 7 else "train",
    )
    media = write_numbered(folder / "short.mp4", 5)
    writer = ShardWriter(dataset / "rejects/000000.parquet", REJECTS, rows_per_group=9)
    for path, reason in ((str(media), "too_short"), ("/in/<script>.mp4", "not_media")):
        source = UnitSource(path, path, None, 1, None, None, None)
        writer.add(reject_row(source, reason, "<b>why</b>"))
    writer.commit()
    manifest = json.loads((dataset / "manifest.json").read_text())
    manifest |= {"rejected": 2, "rejects_by_reason": {"too_short": 1, "not_media": 1}}
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    return ClipDataset.open(dataset)


def ids(dataset, *clips):
    """The ids of clips of `write_reviewed` by their numbers."""
    by_name = dict(zip(dataset.index.source, dataset.index.clip_id, strict=True))
    return [str(by_name[f"/made/{clip}.mp4"]) for clip in clips]

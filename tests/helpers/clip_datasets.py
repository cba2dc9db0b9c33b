"""Clip datasets that tests make without decoding anything."""

import hashlib
import json
from pathlib import Path

import numpy as np

from pipelines.config.ingest import IngestSettings
from pipelines.dataset.schema import CLIPS, CLIPS_FOLDER, FORMAT_VERSION, MANIFEST, REJECTS_FOLDER
from pipelines.dataset.shards import ShardWriter
from pipelines.files import write_json
from pipelines.ingest.plan import UnitSource
from pipelines.ingest.worker import clip_row
from pipelines.media.decode import MediaInfo, Segment

FRAME_RATE, SAMPLE_RATE = 4.0, 800
FEED = {
    "splits": ("train",),
    "rank": 0,
    "world_size": 1,
    "seed": 0,
    "shuffle_window": 2,
    "num_frames": 4,
    "frame_rate": FRAME_RATE,
    "num_samples": 800,
    "sample_rate": SAMPLE_RATE,
}
"""A feed of one worker from such a dataset; `batch_size` is missing."""
INFO = MediaInfo("made", "raw", "raw", 8, 6, FRAME_RATE, 0, 0.0, 2.0)


def rename_dataset(folder: Path, dataset_id: str) -> None:
    """Makes a dataset one of other clips, as far as it says itself."""
    manifest = json.loads((folder / MANIFEST).read_text())
    write_json(folder / MANIFEST, manifest | {"dataset_id": dataset_id})


def write_dataset(
    folder: Path,
    num_clips: int,
    *,
    num_frames: int = 8,
    rows_per_group: int = 3,
    clips_per_shard: int = 8,
    size=lambda _: (6, 8),
    has_audio=lambda _: True,
    has_video=lambda _: True,
    split=lambda _: "train",
    frames=None,
) -> Path:
    """Writes clips whose frames say clip and tick, and whose samples count up."""
    settings = IngestSettings(frame_rate=FRAME_RATE, sample_rate=SAMPLE_RATE)
    for part in (CLIPS_FOLDER, REJECTS_FOLDER):
        (folder / part).mkdir(parents=True)
    for first in range(0, num_clips, clips_per_shard):
        place = folder / CLIPS_FOLDER / f"{first:06d}.parquet"
        writer = ShardWriter(place, CLIPS, rows_per_group=rows_per_group)
        for clip in range(first, min(first + clips_per_shard, num_clips)):
            name = f"/made/{clip}.mp4"
            source = UnitSource(
                path=name,
                uri=name,
                source_hash=hashlib.sha256(name.encode()).hexdigest(),
                byte_size=1,
                label=f"class{clip % 3}",
                split=split(clip),
                group=None,
            )
            seconds = num_frames / FRAME_RATE
            segment = Segment(
                0.0,
                seconds,
                (frames or made_frames)(clip, num_frames, size(clip)) if has_video(clip) else None,
                np.arange(round(seconds * SAMPLE_RATE), dtype=np.int16)
                if has_audio(clip)
                else None,
                0,
                INFO,
            )
            writer.add(clip_row(source, segment, settings))
        writer.commit()
    write_json(
        folder / MANIFEST,
        {
            "format_version": FORMAT_VERSION,
            "dataset_id": f"made{num_clips}",
            "clips": num_clips,
            "settings": settings.model_dump(mode="json"),
        },
    )
    return folder


def made_frames(clip: int, num_frames: int, size: tuple[int, int]) -> np.ndarray:
    """Frames whose red is the clip, whose green is the frame and whose blue is the column."""
    frames = np.zeros((num_frames, *size, 3), np.uint8)
    frames[..., 0] = clip
    frames[..., 1] = np.arange(num_frames)[:, None, None]
    frames[..., 2] = np.arange(size[1])
    return frames

"""Clip datasets that tests make without decoding anything."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.config.ingest import IngestSettings
from pipelines.dataset.frame_encoding import shard_schema
from pipelines.dataset.index import ClipIndex, read_index
from pipelines.dataset.schema import CLIPS, CLIPS_FOLDER, FORMAT_VERSION, MANIFEST, REJECTS_FOLDER
from pipelines.dataset.shards import ShardWriter
from pipelines.files import write_json
from pipelines.ingest.unit import UnitSource
from pipelines.ingest.worker import clip_row
from pipelines.media.container import MediaInfo
from pipelines.media.segments import Segment

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
INFO = MediaInfo(
    container="made",
    video_codec="raw",
    audio_codec="raw",
    native_width=8,
    native_height=6,
    native_rate=FRAME_RATE,
    rotation=0,
    is_mirrored=False,
    declares_picture=True,
    declares_sound=True,
    stream_offset_seconds=0.0,
    duration_seconds=2.0,
)


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
    label=lambda clip: f"class{clip % 3}",
    frames=None,
    encoding="raw",
) -> Path:
    """Writes clips whose frames say clip and tick, and whose samples count up."""
    settings = _begin(folder, encoding)
    schema = shard_schema(CLIPS, encoding)
    for first in range(0, num_clips, clips_per_shard):
        path = folder / CLIPS_FOLDER / f"{first:06d}.parquet"
        writer = ShardWriter(path, schema, rows_per_group=rows_per_group)
        for clip in range(first, min(first + clips_per_shard, num_clips)):
            name = f"/made/{clip}.mp4"
            source = UnitSource(
                path=name,
                uri=name,
                source_hash=hashlib.sha256(name.encode()).hexdigest(),
                byte_size=1,
                label=label(clip),
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
    _write_manifest(folder, num_clips, settings)
    return folder


def _write_manifest(folder: Path, num_clips: int, settings: IngestSettings) -> None:
    write_json(
        folder / MANIFEST,
        {
            "format_version": FORMAT_VERSION,
            "dataset_id": f"made{num_clips}",
            "clips": num_clips,
            "settings": settings.model_dump(mode="json"),
        },
    )


def index_of(folder: Path) -> ClipIndex | None:
    """The index in the file of a dataset, if it fits; never that of the shards."""
    manifest = json.loads((folder / MANIFEST).read_text())
    return read_index(str(folder), str(folder / CLIPS_FOLDER), manifest)


@dataclass(frozen=True)
class MadeSegment:
    """A row to write: where it lies in which source."""

    source: int
    first_tick: int
    num_ticks: int
    has_audio: bool = True
    has_video: bool = True
    size: tuple[int, int] = (6, 8)
    name: str = ""
    """Of the source; two names may have the same content."""
    stretch: tuple[float | None, float | None] = (None, None)


def source_of(number: int, num_ticks: int, *, segment_ticks: int = 20) -> list[MadeSegment]:
    """The segments of a whole source, as an ingest cuts it."""
    return [
        MadeSegment(number, tick, min(segment_ticks, num_ticks - tick))
        for tick in range(0, num_ticks, segment_ticks)
    ]


def write_segments(
    folder: Path,
    segments: Sequence[MadeSegment],
    *,
    rows_per_group: int = 3,
    rows_per_shard: int = 8,
    encoding="raw",
) -> Path:
    """Writes rows whose frames say source and tick, and whose samples count up over a source."""
    settings = _begin(folder, encoding)
    schema = shard_schema(CLIPS, encoding)
    for first in range(0, len(segments), rows_per_shard):
        path = folder / CLIPS_FOLDER / f"{first:06d}.parquet"
        writer = ShardWriter(path, schema, rows_per_group=rows_per_group)
        for made in segments[first : first + rows_per_shard]:
            writer.add(_segment_row(made, settings))
        writer.commit()
    _write_manifest(folder, len(segments), settings)
    return folder


def _begin(folder: Path, encoding: str) -> IngestSettings:
    """Makes the folders of a dataset; returns the settings that its clips are made with."""
    for part in (CLIPS_FOLDER, REJECTS_FOLDER):
        (folder / part).mkdir(parents=True)
    return IngestSettings(
        frame_rate=FRAME_RATE, sample_rate=SAMPLE_RATE, clips={"encoding": encoding}
    )


def _segment_row(made: MadeSegment, settings: IngestSettings) -> dict[str, object]:
    name = made.name or f"/made/{made.source}.mp4"
    source = UnitSource(
        path=name,
        uri=name,
        source_hash=hashlib.sha256(str(made.source).encode()).hexdigest(),
        byte_size=1,
        label=None,
        split="train",
        group=None,
        start_seconds=made.stretch[0],
        end_seconds=made.stretch[1],
    )
    frames = made_frames(made.source, made.num_ticks, made.size)
    frames[..., 1] += np.uint8(made.first_tick)
    samples_per_tick = round(SAMPLE_RATE / FRAME_RATE)
    samples = np.arange(made.num_ticks * samples_per_tick) + made.first_tick * samples_per_tick
    segment = Segment(
        made.first_tick / FRAME_RATE,
        made.num_ticks / FRAME_RATE,
        frames if made.has_video else None,
        samples.astype(np.int16) if made.has_audio else None,
        0,
        INFO,
    )
    return clip_row(source, segment, settings)


def made_frames(clip: int, num_frames: int, size: tuple[int, int]) -> np.ndarray:
    """Frames whose red is the clip, whose green is the frame and whose blue is the column."""
    frames = np.zeros((num_frames, *size, 3), np.uint8)
    frames[..., 0] = clip
    frames[..., 1] = np.arange(num_frames)[:, None, None]
    frames[..., 2] = np.arange(size[1])
    return frames

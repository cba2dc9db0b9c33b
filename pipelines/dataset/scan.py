"""The scan of every clip on Ray Data, shard by shard: peak, motion and codes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.codes import Codes, frame_codes, sound_codes
from pipelines.dataset.row_tensors import read_frames, read_waveform
from pipelines.dataset.shards import read_groups
from pipelines.progress import OnProgress

_COLUMNS = [
    "frames",
    "num_frames",
    "height",
    "width",
    "frame_rate",
    "waveform",
    "sample_rate",
]
_NO_CODES = Codes(np.empty(0, np.uint64), np.empty(0, np.bool_))


@dataclass(frozen=True)
class Scan:
    """The measurements of each clip, in the order of the dataset's index."""

    peak: NDArray[np.float64]
    """Peak of the sound, as a share of full scale; NaN without sound."""
    motion: NDArray[np.float64]
    """Largest mean difference of adjacent frames, in gray levels of 256; NaN without picture."""
    frames: Sequence[Codes]
    sounds: Sequence[Codes]


def scan_dataset(dataset: ClipDataset, on_progress: OnProgress) -> Scan:
    """Scans all clips; requires a connection to Ray."""
    shards = [{"number": i, "shard": shard} for i, shard in enumerate(dataset.shards)]
    seen: dict[tuple[int, int], dict[str, Any]] = {}
    # 1:N, CPU-bound: one task per shard.
    rows = ray.data.from_items(shards, override_num_blocks=max(1, len(shards))).flat_map(
        _scan_shard, num_cpus=1
    )
    rows.context.enable_progress_bars = False
    for row in rows.iter_rows():
        seen[row["number"], row["row"]] = row
        on_progress(len(seen), dataset.num_clips, "")
    ordered = [seen[key] for key in sorted(seen)]
    return Scan(
        np.array([row["peak"] for row in ordered], np.float64),
        np.array([row["motion"] for row in ordered], np.float64),
        [Codes.from_bytes(row["frames"]) for row in ordered],
        [Codes.from_bytes(row["sound"]) for row in ordered],
    )


def _scan_shard(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    number = 0
    for table in read_groups(item["shard"], _COLUMNS):
        for i in range(len(table)):
            yield {"number": item["number"], "row": number, **_scan(table, i, item["shard"])}
            number += 1


def _scan(table: pa.Table, i: int, shard: str) -> dict[str, Any]:
    pixels, samples = read_frames(table, i, shard=shard), read_waveform(table, i)
    frames = sounds = _NO_CODES
    peak = motion = float("nan")
    if pixels is not None:
        frames = frame_codes(pixels, table["frame_rate"][i].as_py())
        motion = largest_motion(pixels)
    if samples is not None:
        sounds = sound_codes(samples, table["sample_rate"][i].as_py())
        peak = float(np.abs(samples.astype(np.int32)).max(initial=0)) / 32768.0
    return {
        "peak": peak,
        "motion": motion,
        "frames": frames.to_bytes(),
        "sound": sounds.to_bytes(),
    }


def largest_motion(frames: NDArray[np.uint8]) -> float:
    """Returns the largest mean difference of adjacent frames, in gray levels."""
    if len(frames) < 2:
        return 0.0
    # Every fourth row and column is enough to detect motion.
    small = frames[:, ::4, ::4].astype(np.int16)
    return float(np.abs(small[1:] - small[:-1]).mean(axis=(1, 2, 3)).max())

"""How fast does the feed give clips, against a bare pyarrow read of the same bytes?

    python tests/benchmarks/feed_rate.py [DATASET]

Without a dataset it makes 192 clips of 20 frames of 128 x 170 pixels. Both read the columns of
tensors row group by row group from local disk with one thread; the feed also shuffles, cuts and
stacks. Measured in CPU seconds, in turns.
"""

import json
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from datasets import write_dataset

from pipelines.clip_dataset import ClipDataset
from pipelines.feed import Feed

REPEATS = 5
BATCH_SIZE = 16


def main() -> None:
    """Prints a table, and one JSON line last."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else make(Path(temporary) / "clips")
        measure(ClipDataset.open(folder))


def make(folder: Path) -> Path:
    """Writes clips of a smoothed noise, which compresses as badly as real frames."""
    noise = np.random.default_rng(0).integers(0, 255, (20, 128, 170, 3))
    base = ((noise + np.roll(noise, 1, 1)) // 2).astype(np.uint8)
    return write_dataset(
        folder,
        192,
        num_frames=20,
        rows_per_group=16,
        clips_per_shard=64,
        frames=lambda clip, *_: np.roll(base, clip, 2),
    )


def measure(dataset: ClipDataset) -> None:
    """Takes turns and prints what came out."""
    feed = Feed(
        dataset,
        splits=("train", "test", "val"),
        batch_size=BATCH_SIZE,
        rank=0,
        world_size=1,
        seed=0,
        shuffle_window=4,
        num_frames=round(4 * dataset.frame_rate),
        frame_rate=dataset.frame_rate,
        num_samples=4 * dataset.sample_rate,
        sample_rate=dataset.sample_rate,
    )
    num_batches = feed.num_clips // BATCH_SIZE
    bare, fed = [], []
    for _ in range(REPEATS):
        bare.append(cpu_seconds(lambda: read_all(dataset)) / dataset.num_clips)
        fed.append(cpu_seconds(lambda: feed_all(feed, num_batches)) / (num_batches * BATCH_SIZE))
    ratios = [one / other for one, other in zip(bare, fed, strict=True)]
    print(f"pyarrow {1 / statistics.median(bare):7.0f} clips/CPU-s")
    print(f"feed    {1 / statistics.median(fed):7.0f} clips/CPU-s")
    print(f"ratio   {statistics.median(ratios):7.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    results = {"bare": bare, "feed": fed, "ratio": statistics.median(ratios)}
    print(json.dumps({"benchmark": "feed_rate", "pyarrow": version("pyarrow"), "results": results}))


def read_all(dataset: ClipDataset) -> None:
    """Reads the tensors of every row group."""
    for shard in dataset.shards:
        file = pq.ParquetFile(shard)
        for group in range(file.num_row_groups):
            file.read_row_group(group, columns=["frames", "waveform"], use_threads=False)


def feed_all(feed: Feed, num_batches: int) -> None:
    """Takes an epoch out of the feed."""
    batches = feed.batches(0)
    for _ in range(num_batches):
        next(batches)
    feed.close()


def cpu_seconds(work) -> float:
    """CPU time of this process."""
    before = time.process_time()
    work()
    return time.process_time() - before


if __name__ == "__main__":
    main()

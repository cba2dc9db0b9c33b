"""How fast does the feed give clips, against other ways to read the same files?

    python tests/benchmarks/feed_rate.py [input=DATASET] [repeats=5] [clips=192] [s3=false]

Without a dataset it makes clips of 20 frames of 128 x 170 pixels. A bare pyarrow read of the
columns of tensors, row group by row group from local disk with one thread, is the yardstick. The
feed, Ray Data's `iter_torch_batches` and a plain torch DataLoader do equal work: row groups in
random order, clips shuffled among four row groups' worth, the same length cut out of each at
random, batches of 16 as torch tensors of uint8 and int16. The
DataLoader runs in the process, and with one worker process that lives on from epoch to epoch. Ray
is one of its own with one CPU, started when the others are done, because it needs CPU when idle.

All are measured in CPU seconds of all their processes and in seconds, an epoch each from its start,
in turns, after one that is not counted; of the feed, which reads ahead beyond the end of an epoch,
it is several epochs, and what it read ahead in the end counts against it. Seconds depend on what
else the machine does. The CPU of a process of Ray that ends within a turn may be missing, so Ray's
figure is at best too good.

With `s3=true` a copy of the dataset lies in a bucket as well (`bucket.py`), and a bare pyarrow read
and the feed take turns at it too. The server's CPU is not counted, but it is of the same machine
and has most of the seconds: beside the local figures, only that of a CPU second says something of
the feed, and beside the bare read of the same bucket both do.
"""

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow.parquet as pq
import ray
from bucket import served
from cpu_time import tree_cpu_seconds
from other_feeds import BATCH_SIZE, WINDOW, loader, loader_all, ray_all
from program import environment, median_and_range, options

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.filesystems import filesystem_of
from pipelines.paths import is_uri
from pipelines.training.feed import Feed
from tests.helpers.clip_datasets import write_dataset

DEFAULTS = {"input": "", "repeats": "5", "clips": "192", "s3": "false"}
FEED_EPOCHS = 12
AGAINST = {
    "pyarrow": (),
    "pyarrow, S3": ("pyarrow",),
    "feed, S3": ("pyarrow, S3", "feed"),
}
"""What a way is compared with, if not with the bare read of local files alone."""
Way = Callable[[], int]
"""Reads, and gives how many clips it read."""
Took = dict[str, list[tuple[float, float]]]
"""CPU seconds and seconds a clip, by way and turn."""


def main() -> None:
    """Prints a table, and one JSON line last."""
    given = options(DEFAULTS)
    if given["s3"] not in ("true", "false"):
        raise SystemExit(f"s3 ({given['s3']}) must be true or false")
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = Path(given["input"] or make(scratch / "clips", int(given["clips"])))
        ways = local_ways(ClipDataset.open(folder))
        apart_from = []
        if given["s3"] == "true":
            uri, server = stack.enter_context(served(folder))
            ways |= remote_ways(ClipDataset.open(uri))
            apart_from.append(server)
        took = measure(ClipDataset.open(folder), ways, int(given["repeats"]), apart_from)
    line = {"benchmark": "feed_rate", **environment("pyarrow", "ray", "torch")}
    print(json.dumps(line | {"settings": given, "results": report(took)}))


def make(folder: Path, num_clips: int) -> Path:
    """Writes clips of a smoothed noise, which compresses as badly as real frames."""
    noise = np.random.default_rng(0).integers(0, 255, (20, 128, 170, 3))
    base = ((noise + np.roll(noise, 1, 1)) // 2).astype(np.uint8)
    return write_dataset(
        folder,
        num_clips,
        num_frames=20,
        rows_per_group=16,
        clips_per_shard=64,
        frames=lambda clip, *_: np.roll(base, clip, 2),
    )


def local_ways(dataset: ClipDataset) -> dict[str, Way]:
    """The ways to read the files where they are."""
    loaders = [loader(dataset, num_workers) for num_workers in (0, 1)]
    return {
        "pyarrow": lambda: read_all(dataset),
        "feed": lambda: feed_all(dataset),
        "DataLoader": lambda: loader_all(loaders[0]),
        "DataLoader, 1 worker": lambda: loader_all(loaders[1]),
    }


def remote_ways(dataset: ClipDataset) -> dict[str, Way]:
    """The ways to read the files from the bucket."""
    return {"pyarrow, S3": lambda: read_all(dataset), "feed, S3": lambda: feed_all(dataset)}


def measure(
    dataset: ClipDataset, ways: dict[str, Way], repeats: int, apart_from: Collection[int]
) -> Took:
    """Takes turns; those of Ray come when the others have ended."""
    took = turns(ways, repeats, apart_from)
    ways.clear()
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    took |= turns({"Ray Data": lambda: ray_all(dataset)}, repeats, apart_from)
    ray.shutdown()
    return took


def report(took: Took) -> dict[str, dict[str, float | list[float]]]:
    """Prints a line a way, and what it gives of what others give in the same turn."""
    results: dict[str, dict[str, float | list[float]]] = {}
    for name, costs in took.items():
        cpu, seconds = (median(part) for part in zip(*costs, strict=True))
        found = results[name] = {"clips_per_cpu_second": 1 / cpu, "clips_per_second": 1 / seconds}
        print(f"{name:20} {1 / cpu:7.0f} clips/CPU-s {1 / seconds:7.0f} clips/s")
        for other in AGAINST.get(name, ("pyarrow",)):
            turns_of_both = list(zip(took[other], costs, strict=True))
            for unit, number in (("CPU second", 0), ("second", 1)):
                shares = [theirs[number] / own[number] for theirs, own in turns_of_both]
                found[f"share of {other} a {unit}"] = shares
                print(f"    a {unit}, of {other}: {median_and_range(shares)}")
    return results


def turns(ways: dict[str, Way], repeats: int, apart_from: Collection[int]) -> Took:
    """What each way took in each turn but the first, which reads the files into memory."""
    took: Took = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, work in ways.items():
            cost = timed(work, apart_from)
            if number:
                took[name].append(cost)
    return took


def timed(work: Way, apart_from: Collection[int]) -> tuple[float, float]:
    """CPU seconds and seconds that a clip took."""
    counts: list[int] = []
    begin = time.perf_counter()
    cpu = tree_cpu_seconds(lambda: counts.append(work()), apart_from)
    return cpu / counts[0], (time.perf_counter() - begin) / counts[0]


def read_all(dataset: ClipDataset) -> int:
    """Reads the tensors of every row group; of a bucket as far ahead as pyarrow does."""
    for shard in dataset.shards:
        if is_uri(shard):
            filesystem, path = filesystem_of(shard)
            file = pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True)
        else:
            file = pq.ParquetFile(shard)
        for group in range(file.num_row_groups):
            file.read_row_group(group, columns=["frames", "waveform"], use_threads=False)
    return dataset.num_clips


def feed_all(dataset: ClipDataset) -> int:
    """Takes epochs out of the feed."""
    feed = Feed(
        dataset,
        splits=("train", "test", "val"),
        batch_size=BATCH_SIZE,
        rank=0,
        world_size=1,
        seed=0,
        shuffle_window=WINDOW,
        num_frames=round(4 * dataset.frame_rate),
        frame_rate=dataset.frame_rate,
        num_samples=4 * dataset.sample_rate,
        sample_rate=dataset.sample_rate,
    )
    batches = feed.batches(0)
    num_batches = FEED_EPOCHS * feed.num_clips // BATCH_SIZE
    for _ in range(num_batches):
        next(batches)
    feed.close()
    for thread in threading.enumerate():  # what it still reads is no other way's CPU
        if thread.name.startswith("feed"):
            thread.join()
    return num_batches * BATCH_SIZE


if __name__ == "__main__":
    main()

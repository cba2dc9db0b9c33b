"""How fast does the feed give clips, against other ways to read the same files?

    python tests/benchmarks/feed_rate.py [input=DATASET] [repeats=5] [clips=192]

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
"""

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from cpu_time import tree_cpu_seconds
from ray.data.collate_fn import ArrowBatchCollateFn
from torch.utils.data import DataLoader, IterableDataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from datasets import write_dataset

from pipelines.clip_dataset import ClipDataset
from pipelines.feed import Feed

DEFAULTS = {"input": "", "repeats": "5", "clips": "192"}
BATCH_SIZE = 16
WINDOW = 4
FEED_EPOCHS = 4
COLUMNS = ["frames", "num_frames", "height", "width", "waveform"]
Row = dict[str, bytes | int]


def main() -> None:
    """Prints a table, and one JSON line last."""
    options = DEFAULTS | dict(argument.split("=", 1) for argument in sys.argv[1:])
    if unknown := options.keys() - DEFAULTS.keys():
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "clips"
        folder = options["input"] or make(made, int(options["clips"]))
        dataset = ClipDataset.open(folder)
        measure(dataset, int(options["repeats"]))


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


def measure(dataset: ClipDataset, repeats: int) -> None:
    """Takes turns and prints what came out."""
    loaders = [loader(dataset, num_workers) for num_workers in (0, 1)]
    ways: dict[str, Callable[[], int]] = {
        "pyarrow": lambda: read_all(dataset),
        "feed": lambda: feed_all(dataset),
        "DataLoader": lambda: loader_all(loaders[0]),
        "DataLoader, 1 worker": lambda: loader_all(loaders[1]),
    }
    took = turns(ways, repeats)
    loaders.clear()
    ways.clear()
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    took |= turns({"Ray Data": lambda: ray_all(dataset)}, repeats)
    ray.shutdown()
    results = {}
    for name, costs in took.items():
        cpu, seconds = (statistics.median(part) for part in zip(*costs, strict=True))
        own = [cost[0] for cost in costs]
        ratios = [one / other[0] for one, other in zip(own, took["pyarrow"], strict=True)]
        results[name] = {"clips_per_cpu_second": 1 / cpu, "clips_per_second": 1 / seconds}
        print(
            f"{name:22} {1 / cpu:7.0f} clips/CPU-s {1 / seconds:7.0f} clips/s  "
            f"share of pyarrow {1 / statistics.median(ratios):5.2f} "
            f"({1 / max(ratios):.2f} to {1 / min(ratios):.2f})"
        )
    versions = {name: version(name) for name in ("pyarrow", "ray", "torch")}
    print(json.dumps({"benchmark": "feed_rate", **versions, "results": results}))


def turns(ways: dict[str, Callable[[], int]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """What each way took in each turn but the first, which reads the files into memory."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, work in ways.items():
            cost = timed(work)
            if number:
                took[name].append(cost)
    return took


def timed(work: Callable[[], int]) -> tuple[float, float]:
    """CPU seconds and seconds that a clip took."""
    counts: list[int] = []
    begin = time.perf_counter()
    cpu = tree_cpu_seconds(lambda: counts.append(work()))
    return cpu / counts[0], (time.perf_counter() - begin) / counts[0]


def read_all(dataset: ClipDataset) -> int:
    """Reads the tensors of every row group."""
    for shard in dataset.shards:
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


class Cut:
    """Takes a stretch out of a clip, and puts stretches together."""

    def __init__(self, dataset: ClipDataset) -> None:
        self._num_frames = round(4 * dataset.frame_rate)
        self._num_samples = 4 * dataset.sample_rate
        self._samples_per_frame = dataset.sample_rate / dataset.frame_rate
        self._generator = np.random.default_rng(0)

    def one(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        """The same random stretch of picture and sound."""
        shape = (row["num_frames"], row["height"], row["width"], 3)
        frames = np.frombuffer(row["frames"], np.uint8).reshape(shape)
        waveform = np.frombuffer(row["waveform"], np.int16)
        start = int(self._generator.integers(max(0, len(frames) - self._num_frames) + 1))
        first = round(start * self._samples_per_frame)
        frames = frames[start : start + self._num_frames]
        waveform = waveform[first : first + self._num_samples]
        if len(frames) < self._num_frames:
            frames = np.resize(frames, (self._num_frames, *frames.shape[1:]))
        if len(waveform) < self._num_samples:
            waveform = np.pad(waveform, (0, self._num_samples - len(waveform)))
        return frames, waveform

    def batch(
        self, clips: list[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pads frames on the right and below to the largest."""
        pictures, sounds = zip(*clips, strict=True)
        height, width = (max(picture.shape[side] for picture in pictures) for side in (1, 2))
        frames = np.zeros((len(clips), self._num_frames, height, width, 3), np.uint8)
        for target, picture in zip(frames, pictures, strict=True):
            target[:, : picture.shape[1], : picture.shape[2]] = picture
        return torch.from_numpy(frames), torch.from_numpy(np.stack(sounds))


class Collate(ArrowBatchCollateFn):
    """Turns Ray Data's batches of Arrow rows into tensors."""

    def __init__(self, dataset: ClipDataset) -> None:
        super().__init__()
        self._cut = Cut(dataset)

    def __call__(self, batch: pa.Table) -> tuple[torch.Tensor, torch.Tensor]:
        return self._cut.batch([self._cut.one(row) for row in usable(batch)])


def usable(table: pa.Table) -> Iterator[Row]:
    """Rows with both streams, as one takes them out of Arrow; its scalars copy their values."""
    for i in range(table.num_rows):
        row = {name: table[name][i] for name in COLUMNS}
        if row["frames"].is_valid and row["waveform"].is_valid:
            yield {
                name: value.as_buffer() if name in ("frames", "waveform") else value.as_py()
                for name, value in row.items()
            }


def ray_all(dataset: ClipDataset) -> int:
    """Takes an epoch out of Ray Data."""
    shards = [str(path) for path in dataset.shards]
    rows = ray.data.read_parquet(shards, shuffle="files").select_columns(COLUMNS)
    count = 0
    for frames, _ in rows.iter_torch_batches(
        batch_size=BATCH_SIZE,
        collate_fn=Collate(dataset),
        local_shuffle_buffer_size=WINDOW * BATCH_SIZE,
        drop_last=True,
    ):
        count += len(frames)
    return count


class Rows(IterableDataset[tuple[np.ndarray, np.ndarray]]):
    """What one writes for a DataLoader: row groups in random order, shuffled a few at a time."""

    def __init__(self, dataset: ClipDataset) -> None:
        self._shards = [str(path) for path in dataset.shards]
        self._cut = Cut(dataset)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        generator = np.random.default_rng(0)
        places = [
            (shard, group)
            for shard in self._shards
            for group in range(pq.read_metadata(shard).num_row_groups)
        ]
        generator.shuffle(places)
        for begin in range(0, len(places), WINDOW):
            rows: list[Row] = []
            for shard, group in places[begin : begin + WINDOW]:
                with pq.ParquetFile(shard, memory_map=True) as file:
                    table = file.read_row_group(group, columns=COLUMNS, use_threads=False)
                rows += usable(table)
            for number in generator.permutation(len(rows)):
                yield self._cut.one(rows[number])


def loader(dataset: ClipDataset, num_workers: int) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
    """Makes a DataLoader whose worker, if it has one, lives on."""
    return DataLoader(
        Rows(dataset),
        batch_size=BATCH_SIZE,
        num_workers=num_workers,
        collate_fn=Cut(dataset).batch,
        drop_last=True,
        # A fork would have the threads of pyarrow.
        multiprocessing_context="forkserver" if num_workers else None,
        persistent_workers=bool(num_workers),
    )


def loader_all(batches: DataLoader[tuple[torch.Tensor, torch.Tensor]]) -> int:
    """Takes an epoch out of a DataLoader."""
    return sum(len(frames) for frames, _ in batches)


if __name__ == "__main__":
    main()

"""What does one worker of many read, and what does it cost to open a large dataset?

    python tests/benchmarks/feed_scale.py [clips=4096] [workers=1,8,64,512] [index_clips=10000000]
        [frames=20] [encoding=raw]

The dataset has clips of `frames` frames of 128 x 170 pixels (2.8 MB with 43) in row groups of 16,
as many of them as each number of workers needs; all its shards are links to one file, so that disk
and page cache hold one. One worker of each number reads alone: from its start until it has given
12 batches, in which it takes the memory that it uses from then on, which is not counted, and then
`clips` more. Batches are of 256 clips, or 4 for
each worker. Beside the order with lanes stands the same with one lane, which is how the feed read
before it had lanes, and a bare pyarrow read of the tensors of the shard by one thread.

The index of `index_clips` made rows is opened in a process of its own, which asks for the split of
every row and for 1,000 ids. Its memory is what it has of its own (RssAnon) beyond that after the
imports: pages of the file are shared with all processes of the machine.
"""

import hashlib
import json
import multiprocessing
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from program import environment, options

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipelines.dataset.clip_dataset import ClipDataset, ClipGroup
from pipelines.dataset.index import ClipIndex, read_shards, write_index
from pipelines.dataset.text_column import TextColumn
from pipelines.training.feed import Feed
from tests.helpers.clip_datasets import FRAME_RATE, SAMPLE_RATE, write_dataset

DEFAULTS = {
    "clips": "4096",
    "workers": "1,8,64,512",
    "index_clips": "10000000",
    "frames": "20",
    "encoding": "raw",
}
ROWS_PER_SHARD, ROWS_PER_GROUP = 64, 16
WARM_UP_BATCHES = 12


class CountingDataset(ClipDataset):
    """A dataset that knows how many rows were read of it."""

    num_rows = 0

    def read_group(self, group: int) -> ClipGroup:
        """Reads a row group and counts its rows."""
        found = super().read_group(group)
        CountingDataset.num_rows += len(found.table)
        return found


def main() -> None:
    """Prints two tables, and one JSON line last."""
    given = options(DEFAULTS)
    workers = [int(number) for number in given["workers"].split(",")]
    num_clips, num_frames = int(given["clips"]), int(given["frames"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shard = make_shard(folder / "one", num_frames, given["encoding"])
        results = {
            number: measure(folder, shard, number, num_clips, num_frames) for number in workers
        }
        opened = open_index(folder / "large", int(given["index_clips"]))
    line = {"benchmark": "feed_scale", **environment("pyarrow", "torch")}
    print(json.dumps(line | {"settings": given, "workers": results, "index": opened}))


def make_shard(folder: Path, num_frames: int, encoding: str) -> Path:
    """Writes a dataset of one shard of a smoothed noise, as bad to compress as real frames."""
    noise = np.random.default_rng(0).integers(0, 255, (num_frames, 128, 170, 3))
    base = ((noise + np.roll(noise, 1, 1)) // 2).astype(np.uint8)
    write_dataset(
        folder,
        ROWS_PER_SHARD,
        num_frames=num_frames,
        encoding=encoding,
        rows_per_group=ROWS_PER_GROUP,
        clips_per_shard=ROWS_PER_SHARD,
        frames=lambda clip, *_: np.roll(base, clip, 2),
    )
    (shard,) = (folder / "clips").iterdir()
    return shard


def make_dataset(folder: Path, shard: Path, num_rows: int) -> Path:
    """Makes a dataset of links to one shard, with its index."""
    if folder.exists():
        return folder
    (folder / "clips").mkdir(parents=True)
    for number in range(-(-num_rows // ROWS_PER_SHARD)):
        (folder / "clips" / f"{number:07d}.parquet").symlink_to(shard)
    manifest = json.loads((shard.parents[1] / "manifest.json").read_text())
    index = read_shards(sorted(str(file) for file in (folder / "clips").iterdir()))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"clips": len(index)}))
    write_index(folder, manifest["dataset_id"], index)
    return folder


def bare_rate(shard: Path, num_clips: int) -> float:
    """Clips a second of a bare read of the tensors, row group by row group."""
    begin, done = time.perf_counter(), 0
    while done < num_clips:
        with pq.ParquetFile(shard, memory_map=True) as file:
            for group in range(file.num_row_groups):
                columns = ["frames", "waveform"]
                done += len(file.read_row_group(group, columns=columns, use_threads=False))
    return done / (time.perf_counter() - begin)


def measure(
    folder: Path, shard: Path, num_workers: int, num_clips: int, num_frames: int
) -> dict[str, float]:
    """Rows read a clip and clips a second of one worker, with lanes and with one."""
    batch_size = max(256, 4 * num_workers)
    num_rows = 32 * ROWS_PER_GROUP * (batch_size // 4)
    dataset = CountingDataset.open(make_dataset(folder / str(num_rows), shard, num_rows))
    bare_rate(shard, ROWS_PER_SHARD)
    found: dict[str, float] = {"batch_size": batch_size, "bare": bare_rate(shard, num_clips)}
    print(f"{num_workers:4} workers, bare read{found['bare']:41.0f} clips/s", flush=True)
    for name, num_lanes in (("lanes", None), ("one lane", 1)):
        rows, seconds = read(
            dataset, num_workers, batch_size, num_lanes, num_clips, num_frames * 4 // 5
        )
        found |= {f"{name}: rows a clip": rows, f"{name}: clips/s": 1 / seconds}
        print(
            f"{num_workers:4} workers, batch {batch_size:5}, {name:9}"
            f"{rows:7.2f} rows read a clip {1 / seconds:8.0f} clips/s a worker",
            flush=True,
        )
    return found


def read(
    dataset: ClipDataset,
    num_workers: int,
    batch_size: int,
    num_lanes: int | None,
    num_clips: int,
    num_frames: int,
) -> tuple[float, float]:
    """Rows read and seconds, both a clip, of the worker in the middle."""
    feed = Feed(
        dataset,
        splits=("train",),
        batch_size=batch_size,
        rank=num_workers // 2,
        world_size=num_workers,
        seed=0,
        shuffle_window=16,
        num_frames=num_frames,
        frame_rate=FRAME_RATE,
        num_samples=round(num_frames / FRAME_RATE * SAMPLE_RATE),
        sample_rate=SAMPLE_RATE,
        epoch_unit="segment",  # the links are the same sources again and again
        num_lanes=num_lanes,
    )
    share = batch_size // num_workers
    batches = feed.batches(0)
    for _ in islice(batches, WARM_UP_BATCHES):
        pass
    rows, begin, num_batches = CountingDataset.num_rows, time.perf_counter(), num_clips // share
    for _ in islice(batches, num_batches):
        pass
    seconds = time.perf_counter() - begin
    rows = CountingDataset.num_rows - rows
    feed.close()
    return rows / (num_batches * share), seconds / (num_batches * share)


def open_index(folder: Path, num_clips: int) -> dict[str, float]:
    """Seconds and bytes that opening the index of so many made rows takes."""
    folder.mkdir()
    write_index(folder, "large", made_index(num_clips))
    settings = {"frame_rate": FRAME_RATE, "sample_rate": SAMPLE_RATE}
    manifest = {"format_version": 1, "dataset_id": "large", "clips": num_clips}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "settings": settings}))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, num_bytes = pool.apply(opened, (str(folder),))
    size = (folder / "index.arrow").stat().st_size
    print(
        f"index of {num_clips:,} clips, {size / 1e6:,.0f} MB: {seconds:.2f} s to open and look "
        f"through, {num_bytes / 1e6:.0f} MB of a process"
    )
    return {"clips": num_clips, "file_bytes": size, "seconds": seconds, "bytes": num_bytes}


def opened(folder: str) -> tuple[float, int]:
    """Opens a dataset, and gives the seconds and the memory of this process alone."""
    before, begin = own_memory(), time.perf_counter()
    index = ClipDataset.open(folder).index
    index.split.isin(["train"]).sum()
    index.clip_id[np.linspace(0, len(index) - 1, 1000).astype(int)]
    index.shard_of_group(int(index.group[-1]))
    return time.perf_counter() - begin, own_memory() - before


def own_memory() -> int:
    """Bytes of this process that are of no file."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def made_index(num_clips: int) -> ClipIndex:
    """Rows as an ingest of two-segment sources leaves them, sixteen to a row group."""
    rows = np.arange(num_clips)
    sources = rows // 2
    zeros = np.zeros(num_clips, np.int32)
    names = pa.array([f"/data/videos/{n:011d}.mp4" for n in range(int(sources[-1]) + 1)])
    classes = pa.array([f"class {n}" for n in range(400)], pa.large_string())
    num_groups = int(rows[-1]) // ROWS_PER_GROUP + 1
    num_shards = -(-num_groups // 4)
    return ClipIndex(
        clip_id=TextColumn(pa.array(_ids(num_clips), pa.large_string())),
        source=_coded(sources, names.cast(pa.large_string())),
        label=_coded(sources % 400, classes),
        split=_coded(rows % 10 == 0, pa.array(["train", "test"], pa.large_string())),
        start_seconds=(rows % 2) * 5.0,
        num_frames=zeros + 40,
        height=zeros + 128,
        width=zeros + 170,
        num_samples=zeros + 80_000,
        has_audio=np.ones(num_clips, bool),
        group=(rows // ROWS_PER_GROUP).astype(np.int32),
        source_number=sources.astype(np.int32),
        shards=tuple(f"clips/{number:07d}.parquet" for number in range(num_shards)),
        group_ends=np.minimum(4 * np.arange(1, num_shards + 1), num_groups),
    )


def _ids(num_clips: int) -> list[str]:
    begin = hashlib.sha256(b"made").hexdigest()[:16]
    return [f"{begin}{number:016x}" for number in range(num_clips)]


def _coded(codes: np.ndarray, texts: pa.Array) -> TextColumn:
    return TextColumn(pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), texts))


if __name__ == "__main__":
    main()

"""What else gives batches of clips: Ray Data and a plain DataLoader, written as one would."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from ray.data.collate_fn import ArrowBatchCollateFn
from torch.utils.data import DataLoader, IterableDataset

from pipelines.dataset.clip_dataset import ClipDataset

BATCH_SIZE = 16
WINDOW = 4
"""Row groups whose clips are shuffled together."""
COLUMNS = ["frames", "num_frames", "height", "width", "waveform"]
Row = dict[str, bytes | int]


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
        groups = [
            (shard, group)
            for shard in self._shards
            for group in range(pq.read_metadata(shard).num_row_groups)
        ]
        generator.shuffle(groups)
        for begin in range(0, len(groups), WINDOW):
            rows: list[Row] = []
            for shard, group in groups[begin : begin + WINDOW]:
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

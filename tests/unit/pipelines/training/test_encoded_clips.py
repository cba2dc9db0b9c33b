"""A feed of encoded clips: the same order and the same windows, on any number of workers."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.index import write_index
from pipelines.errors import UserError
from pipelines.training.feed import Feed
from tests.helpers.clip_datasets import FEED, rename_dataset, source_of, write_segments

TICKS = 16
SOURCES = [segment for number in range(9) for segment in source_of(number, 40)]


@pytest.fixture(scope="module", params=["jpeg", "h264"])
def datasets(request, tmp_path_factory):
    """The same sources of two rows each, raw and encoded, as one dataset id."""
    folder = tmp_path_factory.mktemp(request.param)
    found = []
    for encoding in ("raw", request.param):
        write_segments(folder / encoding, SOURCES, encoding=encoding)
        rename_dataset(folder / encoding, "the same")
        found.append(ClipDataset.open(folder / encoding))
    return found


def drawn(dataset, num_batches, first=0, rank=0, world_size=1):
    arguments = {**FEED, "num_frames": TICKS, "num_samples": TICKS * 200}
    arguments |= {"rank": rank, "world_size": world_size}
    feed = Feed(dataset, batch_size=6, **arguments)
    batches = list(islice(feed.batches(first), num_batches))
    feed.close()
    return batches


def clips_of(batches):
    return [
        (name, epoch, frames.tobytes(), waveform.tobytes())
        for batch in batches
        for name, epoch, frames, waveform in zip(
            batch.clip_ids,
            batch.epochs,
            batch.clips.frames.numpy(),
            batch.clips.waveform.numpy(),
            strict=True,
        )
    ]


def test_windows_are_those_of_the_whole_decoded_clips(datasets):
    raw, encoded = datasets
    index = encoded.index
    whole = {clip.clip_id: clip.frames for clip in encoded.clips(range(len(index)))}
    second_row = {
        index.clip_id[row]: index.clip_id[row + 1]
        for row in range(len(index) - 1)
        if index.source[row] == index.source[row + 1]
    }
    num_across = 0
    for plain, batch in zip(drawn(raw, 6), drawn(encoded, 6), strict=True):
        assert plain.clip_ids == batch.clip_ids
        assert np.array_equal(plain.clips.waveform, batch.clips.waveform)
        for name, pixels, frames in zip(
            batch.clip_ids, plain.clips.frames, batch.clips.frames, strict=True
        ):
            start = int(pixels[0, 0, 0, 1])
            num_across += 20 - TICKS < start < 20
            source = np.concatenate([whole[name], whole[second_row[name]]])
            assert np.array_equal(source[start : start + TICKS], frames)
    assert num_across > 5


def test_a_stop_and_other_workers_change_no_pixel(datasets):
    _, encoded = datasets
    whole = clips_of(drawn(encoded, 6))
    parts = [clips_of(drawn(encoded, 4, first=2, rank=rank, world_size=2)) for rank in range(2)]
    after = [
        clip for batch in range(4) for part in parts for clip in part[3 * batch : 3 * batch + 3]
    ]
    assert clips_of(drawn(encoded, 2)) + after == whole


def test_an_index_file_serves_encoded_clips(datasets):
    _, encoded = datasets
    before = clips_of(drawn(encoded, 3))
    write_index(Path(encoded.path), "the same", encoded.index)
    assert clips_of(drawn(ClipDataset.open(encoded.path), 3)) == before


def test_damaged_frames_are_an_error_where_the_batch_is_asked_for(tmp_path):
    write_segments(tmp_path / "clips", SOURCES, encoding="jpeg")
    dataset = ClipDataset.open(tmp_path / "clips")
    for shard in dataset.shards:
        with open(shard, "r+b") as file:
            data = file.read().replace(b"\xff\xd8\xff\xe0", bytes(4))
            file.seek(0)
            file.write(data)
    with pytest.raises(UserError, match=r"shard \(.*\): frames of a clip cannot be read: frame"):
        drawn(dataset, 1)

"""Several clip datasets count as one, with one order and one id."""

from itertools import islice

import pytest

from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.joined import open_datasets
from pipelines.errors import UserError
from pipelines.training.feed import Feed
from tests.helpers.clip_datasets import FEED, rename_dataset, write_dataset


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Datasets of 5, 7 and 9 clips, which share none."""
    folder = tmp_path_factory.mktemp("three")
    whole = write_dataset(folder / "whole", 21, clips_per_shard=1)
    shards = sorted((whole / "clips").glob("*.parquet"))
    parts = []
    for name, first, stop in (("c", 0, 5), ("a", 5, 12), ("b", 12, 21)):
        part = write_dataset(folder / name, stop - first, clips_per_shard=1)
        for shard in (part / "clips").glob("*.parquet"):
            shard.unlink()
        for shard in shards[first:stop]:
            shard.rename(part / "clips" / shard.name)
        rename_dataset(part, f"{name}{name}")
        parts.append(str(part))
    return parts


def test_the_order_in_which_they_are_named_does_not_matter(three):
    one, other = open_datasets(tuple(three)), open_datasets(tuple(reversed(three)))
    assert one.dataset_id == other.dataset_id
    assert one.dataset_id not in {ClipDataset.open(part).dataset_id for part in three}
    assert one.index.order_sha256 == other.index.order_sha256
    assert open_datasets((three[0],)).dataset_id == ClipDataset.open(three[0]).dataset_id


def test_every_row_is_that_of_its_dataset(three):
    joined = open_datasets(tuple(three))
    assert len(joined.index) == joined.num_clips == 21
    row = 0
    for part in sorted(map(ClipDataset.open, three), key=lambda part: part.dataset_id):
        for theirs in part.clips(range(part.num_clips)):
            (ours,) = joined.clips([row])
            assert (ours.clip_id, ours.label) == (theirs.clip_id, theirs.label)
            assert (ours.frames == theirs.frames).all()
            assert (ours.waveform == theirs.waveform).all()
            row += 1
    assert len(set(joined.index.source_number.tolist())) == 21
    assert joined.small_columns(["clip_id"])["clip_id"].to_pylist() == joined.index.clip_id.tolist()
    assert joined.rejects() == []


def test_a_feed_gives_each_clip_once_in_an_epoch(three):
    joined = open_datasets(tuple(three))
    feed = Feed(joined, **FEED, batch_size=7)
    seen = [clip for batch in islice(feed.batches(0), 3) for clip in batch.clip_ids]
    feed.close()
    assert sorted(seen) == sorted(joined.index.clip_id.tolist())


def test_datasets_that_do_not_fit_are_refused(three, tmp_path):
    with pytest.raises(UserError, match="hold the same clips; leave one out"):
        open_datasets((three[0], three[0]))
    overlapping = write_dataset(tmp_path / "overlapping", 2)
    with pytest.raises(UserError, match="2 clips in more than one of them"):
        _ = open_datasets((*three, str(overlapping))).index
    encoded = write_dataset(tmp_path / "encoded", 30, encoding="jpeg")
    with pytest.raises(UserError, match="must have the same frames_encoding"):
        open_datasets((three[0], str(encoded)))

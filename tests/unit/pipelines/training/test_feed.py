import threading
import time
from collections import Counter
from itertools import islice, pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.errors import UserError
from pipelines.training.feed import Feed
from tests.helpers.clip_datasets import FRAME_RATE, SAMPLE_RATE, write_dataset

NUM_CLIPS = 23


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("feed") / "clips"
    return ClipDataset.open(write_dataset(folder, NUM_CLIPS))


def make(dataset, *, rank=0, world_size=1, batch_size=6, **changes):
    arguments = {
        "splits": ("train",),
        "seed": 5,
        "shuffle_window": 2,
        "num_frames": 4,
        "frame_rate": FRAME_RATE,
        "num_samples": 800,
        "sample_rate": SAMPLE_RATE,
    }
    return Feed(
        dataset,
        rank=rank,
        world_size=world_size,
        batch_size=batch_size,
        **(arguments | changes),
    )


def global_batches(dataset, *, world_size, first, count, **changes):
    """What all workers together see, batch by batch."""
    feeds = [
        make(dataset, rank=rank, world_size=world_size, **changes) for rank in range(world_size)
    ]
    parts = [list(islice(feed.batches(first), count)) for feed in feeds]
    for feed in feeds:
        feed.close()
    return [
        [pair for part in batch for pair in zip(part.clip_ids, part.epochs, strict=True)]
        for batch in zip(*parts, strict=True)
    ]


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stops=st.lists(
        st.tuples(st.sampled_from([1, 2, 3]), st.integers(min_value=1, max_value=7)),
        min_size=1,
        max_size=4,
    ),
    batch_size=st.sampled_from([6, 12, 48]),
    num_lanes=st.sampled_from([1, 2, 3]),
)
def test_each_clip_comes_once_an_epoch_however_a_run_is_stopped(
    dataset, stops, batch_size, num_lanes
):
    options = {"batch_size": batch_size, "num_lanes": num_lanes}
    seen, first = [], 0
    for world_size, count in stops:
        seen += global_batches(dataset, world_size=world_size, first=first, count=count, **options)
        first += count
    whole = global_batches(dataset, world_size=1, first=0, count=first, **options)
    assert seen == whole
    by_epoch = Counter(epoch for batch in seen for _, epoch in batch)
    assert len({pair for batch in seen for pair in batch}) == first * batch_size
    for epoch in range(first * batch_size // NUM_CLIPS):
        assert by_epoch[epoch] == NUM_CLIPS


@pytest.mark.parametrize("num_lanes", [1, 3])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (3, 1), (3, 3)])
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 8])
def test_every_stop_and_change_of_workers_gives_the_same_set_each_epoch(
    dataset, stop, before, after, num_lanes
):
    lanes = {"num_lanes": num_lanes}
    seen = global_batches(dataset, world_size=before, first=0, count=stop, **lanes)
    seen += global_batches(dataset, world_size=after, first=stop, count=8 - stop, **lanes)
    clips = [pair for batch in seen for pair in batch]
    assert len(clips) == 48
    for epoch in (0, 1):
        there = sorted(clip for clip, number in clips if number == epoch)
        assert there == sorted(dataset.index.clip_id.tolist())
    assert [number for _, number in clips[2 * NUM_CLIPS :]] == [2, 2]


def test_epochs_have_different_orders_and_seeds_too(dataset):
    (first,) = global_batches(dataset, world_size=1, first=0, count=1, batch_size=46)
    (other,) = global_batches(dataset, world_size=1, first=0, count=1, batch_size=46, seed=6)
    one, two = ([clip for clip, epoch in first if epoch == number] for number in (0, 1))
    assert sorted(one) == sorted(two)
    assert one != two
    assert [clip for clip, _ in other][:NUM_CLIPS] != one


def test_rows_of_one_row_group_are_spread(dataset):
    (batch,) = global_batches(
        dataset, world_size=1, first=0, count=1, batch_size=NUM_CLIPS, shuffle_window=8
    )
    group = dict(zip(dataset.index.clip_id.tolist(), dataset.index.group.tolist(), strict=True))
    groups = [group[clip] for clip, _ in batch]
    neighbours = sum(one == other for one, other in pairwise(groups))
    assert neighbours < NUM_CLIPS // 2


@pytest.mark.parametrize("num_lanes", [1, 3])
def test_picture_and_sound_are_the_same_stretch(dataset, num_lanes):
    feed = make(dataset, num_lanes=num_lanes)
    starts = set()
    for batch in islice(feed.batches(0), 8):
        clips = zip(batch.clips.frames, batch.clips.waveform, batch.clip_ids, strict=True)
        for frames, waveform, clip_id in clips:
            (source,) = dataset.index.source[dataset.index.clip_id == clip_id]
            assert source == f"/made/{int(frames[0, 0, 0, 0])}.mp4"
            first = int(frames[0, 0, 0, 1])
            assert frames[:, 0, 0, 1].tolist() == list(range(first, first + 4))
            assert waveform.tolist() == list(range(first * 200, first * 200 + 800))
            starts.add(first)
    assert starts == {0, 1, 2, 3, 4}
    feed.close()


def test_a_clip_gets_another_stretch_in_another_epoch_but_the_same_on_any_worker(dataset):
    def stretches(world_size):
        found = {}
        for rank in range(world_size):
            feed = make(dataset, rank=rank, world_size=world_size)
            for batch in islice(feed.batches(0), 12):
                for i, key in enumerate(zip(batch.clip_ids, batch.epochs, strict=True)):
                    found[key] = int(batch.clips.frames[i, 0, 0, 0, 1])
            feed.close()
        return found

    assert stretches(1) == stretches(3)
    by_clip = Counter(clip for clip, start in {(c, s) for (c, _), s in stretches(1).items()})
    assert max(by_clip.values()) > 1


def test_a_short_clip_is_looped_and_its_sound_ends_in_silence(dataset):
    feed = make(dataset, num_frames=11, num_samples=2200)
    batch = next(feed.batches(0))
    assert batch.clips.frames[0, :, 0, 0, 1].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2]
    assert batch.clips.waveform[0, :1600].tolist() == list(range(1600))
    assert not batch.clips.waveform[0, 1600:].any()
    feed.close()


def test_frames_of_different_sizes_are_padded_with_black(tmp_path):
    folder = write_dataset(tmp_path / "clips", 12, size=lambda clip: (4 + clip % 3, 9 - clip % 3))
    feed = make(ClipDataset.open(folder), batch_size=12)
    clips = next(feed.batches(0)).clips
    assert clips.frames.shape == (12, 4, 6, 9, 3)
    assert sorted(set(zip(clips.heights.tolist(), clips.widths.tolist(), strict=True))) == [
        (4, 9),
        (5, 8),
        (6, 7),
    ]
    for frames, height, width in zip(clips.frames, clips.heights, clips.widths, strict=True):
        assert not frames[:, height:].any()
        assert not frames[:, :, width:].any()
        assert frames[0, height - 1, :width, 2].tolist() == list(range(width))
    feed.close()


def test_only_clips_of_the_splits_with_both_streams_are_fed(tmp_path):
    folder = write_dataset(
        tmp_path / "clips",
        12,
        has_audio=lambda clip: clip != 0,
        has_video=lambda clip: clip != 1,
        split=lambda clip: ["train", "test", None][clip % 3],
    )
    dataset = ClipDataset.open(folder)
    feed = make(dataset, batch_size=2)
    seen = {clip for batch in islice(feed.batches(0), 6) for clip in batch.clip_ids}
    feed.close()
    wanted = {2, 3, 5, 6, 8, 9, 11}
    names = {f"/made/{clip}.mp4" for clip in wanted}
    assert feed.num_clips == len(wanted)
    assert feed.steps_per_epoch == 3.5
    assert {str(dataset.index.source[dataset.index.clip_id == clip][0]) for clip in seen} <= names


def test_a_dataset_without_a_clip_to_train_on_is_refused(tmp_path):
    folder = write_dataset(tmp_path / "silent", 3, has_audio=lambda _: False)
    feed = make(ClipDataset.open(folder))
    assert feed.num_clips == 0
    with pytest.raises(UserError, match="has no clip with picture and sound"):
        feed.batches(0)


def test_other_rates_than_the_models_are_refused(dataset):
    with pytest.raises(UserError, match=r"has frame_rate 4, but the model needs 8"):
        make(dataset, frame_rate=8.0)
    with pytest.raises(UserError, match=r"has sample_rate 800, but the model needs 16000"):
        make(dataset, sample_rate=16_000)
    with pytest.raises(
        ValueError, match=r"batch_size \(6\) must be a multiple of world_size \(4\)"
    ):
        make(dataset, world_size=4)


def test_a_damaged_shard_is_an_error_where_the_batch_is_asked_for(tmp_path):
    folder = write_dataset(tmp_path / "clips", 6)
    dataset = ClipDataset.open(folder)
    feed = make(dataset)
    assert feed.num_clips == 6
    (shard,) = (folder / "clips").glob("*.parquet")
    shard.unlink()
    with pytest.raises(UserError, match=r"shard .* cannot be read"):
        list(islice(feed.batches(0), 3))


def test_a_closed_feed_leaves_no_thread(dataset):
    before = threading.active_count()
    feed = make(dataset)
    next(feed.batches(0))
    feed.close()
    for _ in range(50):
        if threading.active_count() <= before:
            return
        time.sleep(0.1)
    raise AssertionError([thread.name for thread in threading.enumerate()])

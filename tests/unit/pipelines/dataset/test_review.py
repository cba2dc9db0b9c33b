"""A review finds leaks, duplicates and static clips, and what it lists is never fed."""

import pytest

from pipelines.config.dataset import DatasetSettings
from pipelines.config.pretrain import PretrainConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.clip_ids import read_clip_ids
from pipelines.dataset.review import review
from pipelines.errors import UserError
from pipelines.training.checks import check_pretrain
from pipelines.training.feed import Feed
from tests.helpers.clip_datasets import FEED, write_dataset
from tests.helpers.reviewed import ids, scenes, write_reviewed

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_reviewed(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def found(dataset, local_ray):
    return review(dataset, DatasetSettings(max_shown=4), lambda *_: None)


def test_leaks_duplicates_and_static_clips_are_found(dataset, found):
    assert found.leaks == ids(dataset, 0)
    assert found.duplicates in (ids(dataset, 4), ids(dataset, 5))
    assert found.static == ids(dataset, 3)
    assert found.silent == []
    assert {(pair.kind, pair.is_leak) for pair in found.pairs} == {
        ("picture", True),
        ("picture", False),
    }
    assert found.shown_pairs[0].is_leak


def test_the_counts_are_those_of_the_rows(found):
    assert found.splits == {"train": 8, "test": 2}
    assert found.streams == {"picture and sound": 9, "picture alone": 1}
    assert dict(found.labels)["class0"] == {"train": 3, "test": 1}
    assert found.tables["Size as stored"] == {"64 x 48": 10}
    assert found.num_sources == 10
    assert len(found.sheet) == 4


def test_another_dataset_is_compared_as_well(dataset, local_ray, tmp_path):
    other = write_dataset(
        tmp_path / "other",
        2,
        num_frames=24,
        size=lambda _: (96, 128),
        frames=lambda clip, num_frames, size: scenes(6 + 20 * clip, num_frames, size),
    )
    settings = DatasetSettings(against=(str(other),))
    found = review(dataset, settings, lambda *_: None)
    assert found.leaks == sorted(ids(dataset, 0, 6))


def test_all_of_many_copies_are_leaks_though_not_every_two_are_compared(local_ray, tmp_path):
    folder = write_dataset(
        tmp_path / "copies",
        61,
        num_frames=24,
        size=lambda _: (48, 64),
        frames=lambda clip, num_frames, size: scenes(clip // 60, num_frames, size),
        has_audio=lambda _: False,
        split=lambda clip: "test" if clip == 59 else "train",
    )
    dataset = ClipDataset.open(folder)
    found = review(dataset, DatasetSettings(max_shown=1), lambda *_: None)
    assert found.leaks == sorted(ids(dataset, *range(59)))
    assert len(found.duplicates) == 58


def test_what_is_excluded_is_never_fed(dataset, found):
    feed = Feed(dataset, **FEED, batch_size=1, exclude=found.leaks)
    assert feed.num_clips == Feed(dataset, **FEED, batch_size=1).num_clips - 1 == 6
    seen = set()
    for batch in feed.batches(0):
        if batch.epochs == [2]:
            break
        seen.update(batch.clip_ids)
    feed.close()
    assert seen == set(ids(dataset, 1, 3, 4, 5, 6, 7))


def test_a_list_of_another_dataset_is_a_mistake(dataset, tmp_path):
    (tmp_path / "ids.txt").write_text("# other clips\n\n0123\n")
    config = PretrainConfig(
        name="x",
        epochs=1,
        batch_size=2,
        dataset=dataset.path,
        output=str(tmp_path),
        exclude=str(tmp_path / "ids.txt"),
        model={
            "video": {"frame_rate": 4.0},
            "audio": {
                "sample_rate": 800,
                "num_samples": 6400,
                "local_num_samples": 2010,
                "hop_length": 134,
            },
        },
        optimizer={"warmup_epochs": 0},
    )
    assert check_pretrain(config) == [
        f"exclude ({tmp_path}/ids.txt) names no clip of dataset ({dataset.path})"
    ]
    (tmp_path / "ids.txt").unlink()
    assert "cannot be read" in check_pretrain(config)[0]
    with pytest.raises(UserError, match=r"exclude \(/nowhere\) cannot be read"):
        read_clip_ids("/nowhere")

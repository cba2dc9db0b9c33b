"""The index file says the same as the shards, or is not used."""

import json
import logging

import numpy as np
import pytest

from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.index import read_shards, write_index
from pipelines.dataset.schema import INDEX_FILE
from pipelines.errors import UserError
from tests.helpers.clip_datasets import (
    index_of,
    rename_dataset,
    source_of,
    write_dataset,
    write_segments,
)

TEXT = ("clip_id", "source", "label", "split")
NUMBERS = (
    "start_seconds",
    "num_frames",
    "height",
    "width",
    "num_samples",
    "has_audio",
    "group",
    "row_in_group",
    "source_number",
)


def indexed(folder):
    """Leaves the index of a dataset in its folder."""
    dataset = ClipDataset.open(folder)
    write_index(folder, dataset.dataset_id, dataset.index)
    return folder


@pytest.fixture
def folder(tmp_path):
    return indexed(
        write_dataset(
            tmp_path / "clips",
            20,
            size=lambda clip: (4 + clip % 3, 9),
            has_audio=lambda clip: clip != 3,
            has_video=lambda clip: clip != 4,
            split=lambda clip: ["train", "test", None][clip % 3],
        )
    )


def test_the_file_says_what_the_shards_say(folder):
    there = index_of(folder)
    read = read_shards(sorted(str(file) for file in (folder / "clips").iterdir()))
    assert there is not None
    for name in TEXT:
        assert getattr(there, name).tolist() == getattr(read, name).tolist()
    for name in NUMBERS:
        np.testing.assert_array_equal(getattr(there, name), getattr(read, name))
        assert getattr(there, name).dtype == getattr(read, name).dtype
    assert there.shards == read.shards
    for group in range(int(there.group[-1]) + 1):
        assert there.shard_of_group(group) == read.shard_of_group(group)
        assert there.rows_of_group(group) == read.rows_of_group(group)
    assert there.shard_of_group(3) == (there.shards[1], 0)
    assert there.rows_of_group(3) == (8, 11)


def test_a_moved_dataset_keeps_its_index(folder, tmp_path):
    moved = folder.rename(tmp_path / "moved")
    dataset = ClipDataset.open(moved)
    assert index_of(moved) is not None
    assert all(shard.startswith(str(moved)) for shard in dataset.shards)
    (clip,) = dataset.clips([19])
    assert (clip.frames[..., 0] == 19).all()


@pytest.mark.parametrize("change", ["another dataset", "damaged", "cut", "gone", "more clips"])
def test_an_index_that_does_not_fit_is_not_used(folder, change, caplog):
    file = folder / INDEX_FILE
    if change == "another dataset":
        rename_dataset(folder, "other")
    elif change == "damaged":
        file.write_bytes(b"no index" * 100)
    elif change == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif change == "gone":
        file.unlink()
    else:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"clips": 21}))
    with caplog.at_level(logging.WARNING):
        assert index_of(folder) is None
    assert bool(caplog.records) == (change in ("damaged", "cut"))
    if change == "more clips":
        with pytest.raises(UserError, match="20 clips in its shards, but 21"):
            ClipDataset.open(folder).index  # noqa: B018
    else:
        assert len(ClipDataset.open(folder).index) == 20


def test_a_shard_that_is_another_one_now_is_an_error_of_one_line(folder):
    first, second = sorted((folder / "clips").iterdir())[1:]
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match=r"is not as index\.arrow says; delete index\.arrow and"):
        list(ClipDataset.open(folder).clips(range(20)))


def test_text_is_asked_for_as_an_array_is(folder):
    index = index_of(folder)
    ids = index.clip_id.tolist()
    assert index.clip_id[4] == ids[4]
    assert index.clip_id[np.array([3, 1])].tolist() == [ids[3], ids[1]]
    assert index.clip_id[2:4].tolist() == ids[2:4]
    assert index.clip_id[index.split == "test"].tolist() == ids[1::3]
    assert (index.split != "test").sum() == 13
    assert np.isin(index.split, ["train", ""]).sum() == 13
    assert index.split.isin(["train", ""]).sum() == 13
    assert index.clip_id.isin({ids[2], "none"}).nonzero()[0].tolist() == [2]
    assert index.label.unique() == ["class0", "class1", "class2"]
    assert [*index.label][:3] == ["class0", "class1", "class2"]
    assert np.unique(index.split, return_counts=True)[1].tolist() == [6, 7, 7]
    assert index.clip_id[np.zeros(0, np.int64)].tolist() == []


def test_sources_are_told_by_content_and_stretch(tmp_path):
    segments = [*source_of(0, 40), *source_of(1, 20), *source_of(0, 20)]
    index = index_of(indexed(write_segments(tmp_path / "clips", segments)))
    numbers = index.source_number.tolist()
    assert numbers[0] == numbers[1] == numbers[3] != numbers[2]


def test_a_dataset_without_clips_has_an_index(tmp_path):
    folder = indexed(write_segments(tmp_path / "clips", []))
    assert len(index_of(folder)) == 0
    assert ClipDataset.open(folder).classes == ()


def test_the_order_of_rows_and_groups_is_hashed(tmp_path):
    def order(name, **how):
        return ClipDataset.open(write_dataset(tmp_path / name, 24, **how)).index.order_sha256

    same = order("first")
    assert order("second") == same
    assert order("groups", rows_per_group=4) != same
    assert order("fewer", has_audio=lambda _: False) == same
    shards = sorted((tmp_path / "second/clips").iterdir())
    shards[0].rename(shards[0].with_name("last.parquet"))
    assert ClipDataset.open(tmp_path / "second").index.order_sha256 != same

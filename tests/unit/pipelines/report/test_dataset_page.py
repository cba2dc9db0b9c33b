"""A dataset with a leak, a duplicate, a static and a silent clip, and rejects."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from pipelines.config.dataset import DatasetSettings
from pipelines.config.pretrain import PretrainConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.clip_ids import read_clip_ids
from pipelines.dataset.review import review
from pipelines.dataset.schema import REJECTS
from pipelines.dataset.shards import ShardWriter
from pipelines.errors import UserError
from pipelines.ingest.plan import UnitSource
from pipelines.ingest.worker import reject_row
from pipelines.report.dataset_page import in_words, write_dataset_page
from pipelines.training.checks import check_pretrain
from pipelines.training.feed import Feed
from ray_jobs.cli.main import run_job
from ray_jobs.dataset import JOB
from tests.helpers.clip_datasets import FEED, write_dataset
from tests.helpers.media import write_numbered
from tests.helpers.scenes import scene

pytestmark = pytest.mark.ray


def frames(clip, num_frames, size):
    """Clip 9 is clip 0 in other light, clip 5 is clip 4 and clip 3 stands still."""
    seed = {9: 0, 5: 4}.get(clip, clip)
    shown = scene(seed, num_frames / 8, (96, 128))
    times = 96 // size[0]
    shown = shown.reshape(num_frames, size[0], times, size[1], times, 3).mean(axis=(2, 4))
    if clip == 3:
        shown = np.repeat(shown[:1], num_frames, axis=0)
    return (shown * (0.7 if clip == 9 else 1.0)).astype(np.uint8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    place = write_dataset(
        folder / "clips",
        10,
        num_frames=24,
        size=lambda _: (48, 64),
        frames=frames,
        has_audio=lambda clip: clip != 2,
        split=lambda clip: "test" if clip > 7 else "train",
    )
    media = write_numbered(folder / "short.mp4", 5)
    writer = ShardWriter(place / "rejects/000000.parquet", REJECTS, rows_per_group=9)
    for path, reason in ((str(media), "too_short"), ("/in/<script>.mp4", "not_media")):
        source = UnitSource(path, path, None, 1, None, None, None)
        writer.add(reject_row(source, reason, "<b>why</b>"))
    writer.commit()
    manifest = json.loads((place / "manifest.json").read_text())
    manifest |= {"rejected": 2, "rejects_by_reason": {"too_short": 1, "not_media": 1}}
    (place / "manifest.json").write_text(json.dumps(manifest))
    return ClipDataset.open(place)


@pytest.fixture(scope="module")
def found(dataset, local_ray):
    return review(dataset, DatasetSettings(max_shown=4), lambda *_: None)


def ids(dataset, *clips):
    by_name = dict(zip(dataset.index.source, dataset.index.clip_id, strict=True))
    return [str(by_name[f"/made/{clip}.mp4"]) for clip in clips]


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


def test_the_page_is_one_file_that_trusts_nothing(found, tmp_path):
    page = write_dataset_page(tmp_path / "page", found)
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;.mp4" in text
    assert "<b>why" not in text
    assert re.findall(r'(?:src|href)="(?!data:|#)', text) == []
    assert Balanced().check(text)
    with open(tmp_path / "page/near_duplicates.csv") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["is_leak"] for row in rows) == ["False", "True"]
    assert read_clip_ids(str(tmp_path / "page/leaks.txt")) == set(found.leaks)
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == [
        "dataset.html",
        "duplicates.txt",
        "leaks.txt",
        "near_duplicates.csv",
    ]
    (shown,) = found.rejects["too_short"]
    assert shown.frame is not None
    assert found.rejects["not_media"][0].frame is None


class Balanced(HTMLParser):
    """Knows whether tags nest."""

    VOID = frozenset({"meta", "img", "br", "path", "polygon", "link"})

    def check(self, text):
        self.stack = []
        self.feed(text)
        return self.stack == []

    def handle_starttag(self, tag, _attrs):
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.stack.pop() == tag


def test_the_words_say_what_to_leave_out(found):
    text = in_words(found)
    assert "8 train, 2 test" in text
    assert "alike by picture, test and train: 1 pairs" in text
    assert "to leave out: 1 leaks, 1 duplicates" in text


def test_another_dataset_is_compared_as_well(dataset, local_ray, tmp_path):
    other = write_dataset(
        tmp_path / "other",
        2,
        num_frames=24,
        size=lambda _: (96, 128),
        frames=lambda clip, num_frames, size: frames(6 + 20 * clip, num_frames, size),
    )
    settings = DatasetSettings(against=(str(other),))
    found = review(dataset, settings, lambda *_: None)
    assert found.leaks == sorted(ids(dataset, 0, 6))


def test_all_of_many_copies_are_leaks_though_not_every_two_are_compared(local_ray, tmp_path):
    place = write_dataset(
        tmp_path / "copies",
        61,
        num_frames=24,
        size=lambda _: (48, 64),
        frames=lambda clip, num_frames, size: frames(clip // 60, num_frames, size),
        has_audio=lambda _: False,
        split=lambda clip: "test" if clip == 59 else "train",
    )
    dataset = ClipDataset.open(place)
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


def test_a_folder_that_is_no_dataset_is_refused(tmp_path, capsys):
    assert run_job(JOB, [str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"dataset: dataset ({tmp_path}) is no clip dataset: it has no manifest.json\n"
    )
    assert run_job(JOB, ["s3://bucket/clips"]) == 2
    assert "output must be given" in capsys.readouterr().err
    assert run_job(JOB, [str(tmp_path), "max_shwn=3"]) == 2
    assert "did you mean max_shown?" in capsys.readouterr().err


@pytest.mark.slow
def test_the_job_writes_the_page_into_the_dataset(dataset, tmp_path, capsys):
    ray.shutdown()
    shutil.copytree(dataset.path, tmp_path / "clips")
    assert run_job(JOB, [str(tmp_path / "clips")]) == 0
    assert f"page: {tmp_path}/clips/page/dataset.html" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "clips/clips", columns=["clip_id"]).num_rows == 10

"""Other tools read a clip dataset: Ray Data, datasets, WebDataset; each row as it was written."""

import json
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.config.export import ExportConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.webdataset import export_webdataset
from pipelines.errors import UserError
from pipelines.progress import ignore_progress
from ray_jobs.cli.main import main
from tests.helpers.clip_datasets import made_frames, write_dataset

NUM_CLIPS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten clips in two shards; the fourth has no picture, the fifth no sound."""
    return write_dataset(
        tmp_path_factory.mktemp("data") / "clips",
        NUM_CLIPS,
        has_video=lambda clip: clip != 3,
        has_audio=lambda clip: clip != 4,
        split=lambda clip: "test" if clip % 5 == 0 else "train",
    )


@pytest.fixture(scope="module")
def clips(folder):
    dataset = ClipDataset.open(folder)
    return {clip.clip_id: clip for clip in dataset.clips(range(NUM_CLIPS))}


def frames_of(row):
    """What the README says."""
    shape = row["num_frames"], row["height"], row["width"], 3
    return np.frombuffer(row["frames"], np.uint8).reshape(shape)


def check_rows(rows, clips):
    count = 0
    for row in rows:
        clip = clips[row["clip_id"]]
        count += 1
        if clip.frames is None:
            assert row["frames"] is None
        else:
            np.testing.assert_array_equal(frames_of(row), clip.frames)
        if clip.waveform is None:
            assert row["waveform"] is None
        else:
            np.testing.assert_array_equal(np.frombuffer(row["waveform"], "<i2"), clip.waveform)
    assert count == NUM_CLIPS


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_ray_data_reads_it(folder, clips):
    import ray.data

    rows = ray.data.read_parquet(f"{folder}/clips")
    check_rows(rows.take_all(), clips)


def test_datasets_of_hugging_face_reads_it(folder, clips, tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: xkd[mteb]")
    rows = datasets.load_dataset(
        "parquet", data_dir=f"{folder}/clips", split="train", cache_dir=str(tmp_path)
    )
    check_rows(rows, clips)
    streamed = datasets.load_dataset(
        "parquet", data_dir=f"{folder}/clips", split="train", streaming=True
    )
    check_rows(streamed, clips)


def exported(folder, output, **settings):
    config = ExportConfig(dataset=str(folder), output=str(output), **settings)
    return export_webdataset(config, ignore_progress)


def samples_of(output):
    """The members of each sample, as `tarfile` reads them."""
    found = {}
    for shard in sorted(output.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                name, _, ending = member.name.partition(".")
                found.setdefault(name, {})[ending] = archive.extractfile(member).read()
    return found


def test_webdataset_reads_an_export(folder, clips, tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    done = exported(folder, tmp_path / "wds", max_shard_bytes=10_000)
    shards = [str(tmp_path / "wds" / name) for name in done.shards]
    assert len(shards) > 2
    count = 0
    for sample in webdataset.WebDataset(shards, shardshuffle=False).decode():
        clip = clips[sample["__key__"]]
        count += 1
        assert sample["json"]["clip_id"] == clip.clip_id
        assert sample["label.txt"] == clip.label
        for ending, array in (("frames.npy", clip.frames), ("waveform.npy", clip.waveform)):
            assert (ending in sample) == (array is not None)
            if array is not None:
                np.testing.assert_array_equal(sample[ending], array)
    assert count == NUM_CLIPS


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_an_export_holds_every_clip_once_and_is_the_same_again(tmp_path, encoding):
    folder = write_dataset(
        tmp_path / "clips", 5, encoding=encoding, size=lambda _: (16, 16), frames=made_frames
    )
    for name in ("one", "two"):
        done = exported(folder, tmp_path / name)
        assert (done.clips, done.shards) == (5, ["shard-000000.tar"])
    assert (tmp_path / "one" / "shard-000000.tar").read_bytes() == (
        tmp_path / "two" / "shard-000000.tar"
    ).read_bytes()
    samples = samples_of(tmp_path / "one")
    rows = pq.read_table(folder / "clips").to_pylist()
    assert samples.keys() == {row["clip_id"] for row in rows}
    values = json.loads(samples[rows[0]["clip_id"]]["json"])
    assert values["source"] == rows[0]["source"]
    assert not {"frames", "waveform"} & values.keys()
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest == {"dataset_id": "made5", "clips": 5, "shards": done.shards}


def test_the_command_exports_splits_and_names_mistakes(folder, tmp_path, capsys):
    output = tmp_path / "test"
    assert main(["export", str(folder), str(output), "splits=[test]"]) == 0
    assert "2 clips in 1 shard" in capsys.readouterr().out
    assert len(samples_of(output)) == 2
    assert main(["export", str(folder), str(output)]) == 2
    assert "must be a new or empty folder" in capsys.readouterr().err
    assert main(["export", str(folder), str(tmp_path / "x"), "splits=[val]"]) == 2
    assert "must be of the dataset, which has test, train" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()


def test_a_damaged_shard_ends_an_export(folder, tmp_path):
    other = write_dataset(tmp_path / "clips", 3)
    (shard,) = (other / "clips").glob("*.parquet")
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(UserError):
        exported(other, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.errors import UserError
from tests.helpers.clip_datasets import made_frames, write_dataset


def test_rows_come_back_in_the_order_asked_for(tmp_path):
    dataset = ClipDataset.open(write_dataset(tmp_path / "clips", 20))
    clips = list(dataset.clips([19, 0, 7, 7]))
    order = np.argsort(dataset.index.source)
    for clip, row in zip(clips, [19, 0, 7, 7], strict=True):
        number = int(dataset.index.source[row].split("/")[-1].removesuffix(".mp4"))
        assert np.array_equal(clip.frames, made_frames(number, 8, (6, 8)))
        assert np.array_equal(clip.waveform, np.arange(1600))
        assert clip.clip_id == dataset.index.clip_id[row]
    assert len(order) == dataset.num_clips == 20


def test_missing_streams_are_none(tmp_path):
    folder = write_dataset(
        tmp_path / "clips", 4, has_audio=lambda clip: clip != 1, has_video=lambda clip: clip != 2
    )
    clips = list(ClipDataset.open(folder).clips(range(4)))
    assert [clip.waveform is None for clip in clips] == [False, True, False, False]
    assert [clip.frames is None for clip in clips] == [False, False, True, False]


def test_the_index_knows_row_groups(tmp_path):
    dataset = ClipDataset.open(write_dataset(tmp_path / "clips", 10, clips_per_shard=7))
    assert dataset.index.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 3, 3, 3]
    assert dataset.index.row_in_group.tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 1, 2]
    assert dataset.classes == ("class0", "class1", "class2")


def test_plain_pyarrow_reads_a_shard_as_the_docstring_says(tmp_path):
    folder = write_dataset(tmp_path / "clips", 5)
    table = pq.read_table(folder / "clips")
    row = table.slice(3, 1).to_pylist()[0]
    frames = np.frombuffer(row["frames"], "uint8")
    frames = frames.reshape(row["num_frames"], row["height"], row["width"], 3)
    assert np.array_equal(frames, made_frames(3, 8, (6, 8)))
    assert np.array_equal(np.frombuffer(row["waveform"], "int16"), np.arange(1600))
    assert table.schema.metadata[b"xkd.format_version"] == b"1"


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        ClipDataset.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"it has no manifest\.json"):
        ClipDataset.open(tmp_path)
    (tmp_path / ".ingest").mkdir()
    with pytest.raises(UserError, match="its ingest did not finish"):
        ClipDataset.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        ClipDataset.open(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(UserError, match="has format_version 99, but must have 1"):
        ClipDataset.open(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": "1"}))
    with pytest.raises(UserError, match="has format_version '1', but must have 1"):
        ClipDataset.open(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 1, "clips": 1}))
    with pytest.raises(UserError, match=r"manifest\.json lacks dataset_id, settings; run the same"):
        ClipDataset.open(tmp_path)


def test_a_shard_that_is_not_there_is_missed(tmp_path):
    write_dataset(tmp_path, 6, num_frames=2, clips_per_shard=3)
    (first, second) = sorted((tmp_path / "clips").iterdir())
    first.unlink()
    with pytest.raises(UserError, match=r"3 clips in its shards, but 6 in manifest\.json; run"):
        _ = ClipDataset.open(tmp_path).index
    second.unlink()
    with pytest.raises(UserError, match="0 clips in its shards"):
        _ = ClipDataset.open(tmp_path).index


def test_a_damaged_shard_is_named(tmp_path):
    write_dataset(tmp_path, 6, num_frames=2, clips_per_shard=3)
    (shard, _) = sorted((tmp_path / "clips").iterdir())
    whole = shard.read_bytes()
    dataset = ClipDataset.open(tmp_path)
    assert len(dataset.index.clip_id) == 6
    for damaged in (whole[:100], b"", whole[:200] + bytes(len(whole) - 400) + whole[-200:]):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"shard \({shard}\) cannot be read: .* delete it and"):
            _ = ClipDataset.open(tmp_path).index
    # The small columns are whole and the large ones are not.
    shard.write_bytes(whole)
    with pq.ParquetFile(shard) as file:
        group = file.metadata.row_group(0)
        column = next(
            group.column(i)
            for i in range(group.num_columns)
            if group.column(i).path_in_schema == "frames"
        )
    begin, length = column.data_page_offset, column.total_compressed_size
    shard.write_bytes(whole[:begin] + b"\xff" * length + whole[begin + length :])
    dataset = ClipDataset.open(tmp_path)
    assert len(dataset.index.clip_id) == 6
    with pytest.raises(UserError, match=rf"shard \({shard}\) cannot be read"):
        dataset.read_group(0)

"""The ID of a dataset does not depend on how its text is made."""

import hashlib
import json

import pyarrow as pa

from pipelines.config.ingest import IngestSettings
from pipelines.dataset.shards import shard_names
from pipelines.ingest import summary
from pipelines.ingest.plan import Changes
from pipelines.ingest.summary import _dataset_id, summarize
from pipelines.sources.source import Source, SourceList
from tests.helpers.clip_datasets import write_dataset


def test_the_id_hashes_one_json_text(monkeypatch):
    monkeypatch.setattr(summary, "_ROWS_PER_HASH", 3)
    rows = [
        [
            f"{number * 7 % 10}f",
            ["caf\u00e9", ["a", "b"], None][number % 3],
            ["train", None][number % 2],
        ]
        for number in range(10)
    ]
    labels = [
        label if isinstance(label, list) else [label] if label else [] for _, label, _ in rows
    ]
    clips = pa.table(
        {
            "clip_id": [name for name, *_ in rows],
            "label": [None if isinstance(label, list) else label for _, label, _ in rows],
            "labels": labels,
            "split": [split for *_, split in rows],
        }
    )
    made = {
        "segment_seconds": 5.0,
        "min_segment_seconds": 1.1,
        "frame_rate": 8.0,
        "short_side": 128,
        "sample_rate": 16_000,
    }
    text = json.dumps([1, made, sorted(rows, key=lambda row: row[0])])
    expected = hashlib.sha256(text.encode()).hexdigest()[:32]
    assert _dataset_id(clips, IngestSettings()) == expected
    chunked = pa.concat_tables([clips[6:], clips[:6]])
    assert _dataset_id(chunked, IngestSettings()) == expected


def test_pieces_give_what_the_whole_gives(tmp_path, monkeypatch):
    clips = write_dataset(
        tmp_path / "clips", 24, num_frames=10, split=lambda n: ["train", "test"][n % 2]
    )
    listed = SourceList("videos", [Source(str(n), str(n), None, None, None) for n in range(24)])
    names = shard_names(clips / "clips")

    def summarized():
        units = [name.removesuffix(".parquet") for name in names[:2]]
        return summarize(clips, listed, units, Changes(), IngestSettings())

    whole = summarized()
    assert len(names) > 2
    assert (whole.clips, whole.accepted, whole.rejected) == (24, 24, 0)
    assert 0 < whole.new_clips < 24
    assert whole.media_seconds > 0
    monkeypatch.setattr(summary, "_FILES_AT_A_TIME", 1)
    assert summarized() == whole

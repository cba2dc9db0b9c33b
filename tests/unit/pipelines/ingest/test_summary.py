"""The ID of a dataset does not depend on how its text is made."""

import hashlib
import json

import pyarrow as pa

from pipelines.config.ingest import IngestSettings
from pipelines.ingest import summary
from pipelines.ingest.summary import _dataset_id


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

"""What an encoder takes over from several datasets that were cut in different ways."""

import json

import pytest

from pipelines.config.ingest import IngestSettings
from pipelines.registry.promote import _clip_settings
from tests.helpers.clip_datasets import rename_dataset, write_dataset


@pytest.fixture
def two(tmp_path):
    """Three clips of 2 s, and nine of 4 s, whose id comes later or earlier."""
    made = []
    for name, clips, seconds, side in (("small", 3, 2.0, 64), ("large", 9, 4.0, 96)):
        folder = write_dataset(tmp_path / name, clips)
        values = json.loads((folder / "manifest.json").read_text())
        cut = {"segment_seconds": seconds, "short_side": side}
        values["settings"] |= IngestSettings(**cut).model_dump(mode="json", include=set(cut))
        (folder / "manifest.json").write_text(json.dumps(values))
        made.append(folder)
    return made


@pytest.mark.parametrize("ids", [("a", "b"), ("b", "a")])
def test_the_largest_dataset_decides_and_the_difference_is_told(two, ids, caplog):
    for folder, identity in zip(two, ids, strict=True):
        rename_dataset(folder, identity * 32)
    found = _clip_settings(tuple(map(str, two)), None)
    assert (found.segment_seconds, found.short_side) == (4.0, 96)
    assert "differ in segment_seconds (4.0, 2.0): the encoder takes 4.0" in caplog.text
    assert "differ in short_side (96, 64)" in caplog.text
    caplog.clear()
    assert _clip_settings(str(two[0]), None).segment_seconds == 2.0
    assert caplog.text == ""

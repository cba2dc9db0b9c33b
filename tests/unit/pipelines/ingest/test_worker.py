import dataclasses

import pytest

from pipelines.config.ingest import IngestSettings
from pipelines.dataset.schema import CLIPS, CLIPS_FOLDER, REJECTS_FOLDER
from pipelines.dataset.shards import read_columns
from pipelines.dataset.source_flaws import SourceFlaws, count_flaws
from pipelines.ingest.unit import Unit, UnitSource
from pipelines.ingest.worker import UnitIngester, in_stretch
from pipelines.media.container import DecodeError
from pipelines.media.segments import Segment
from tests.helpers.clip_datasets import INFO
from tests.helpers.media import write_numbered
from tests.helpers.mp4_boxes import set_display_matrix


def kept(seconds, start, end):
    """Starts of the segments of 2 s that are left of a file as long as that."""
    info = dataclasses.replace(INFO, duration_seconds=seconds)
    source = UnitSource("a", "a", "0", 1, None, None, None, start_seconds=start, end_seconds=end)
    segments = [Segment(at, 2.0, None, None, 0, info) for at in range(0, int(seconds), 2)]
    return [segment.start_seconds for segment in in_stretch(source, segments)]


@pytest.mark.parametrize(
    ("stretch", "expected"),
    [
        ((30.0, 38.0), [0, 2, 4, 6]),
        ((30.0, 38.9), [0, 2, 4, 6]),
        ((30.0, 37.1), [0, 2, 4, 6]),
        # Whole, it would end at 14 s at least.
        ((6.0, 14.0), [0, 2, 4, 6]),
        # The video ended before its stretch did.
        ((30.0, 40.0), [0, 2, 4, 6]),
        ((8.0, 23.0), [0, 2, 4, 6]),
    ],
)
def test_a_file_that_was_cut_to_its_stretch_is_kept_whole(stretch, expected):
    assert kept(8.0, *stretch) == expected


@pytest.mark.parametrize(
    ("stretch", "expected"),
    [
        ((2.0, 6.0), [2, 4]),
        ((4.0, 14.0), [4, 6]),
        ((6.0, 21.0), [6]),
        ((None, 6.0), [0, 2, 4]),
        ((4.0, None), [4, 6]),
        ((None, None), [0, 2, 4, 6]),
    ],
)
def test_of_a_whole_file_only_the_stretch_is_kept(stretch, expected):
    assert kept(8.0, *stretch) == expected


def test_a_file_without_its_stretch_is_too_short():
    with pytest.raises(DecodeError, match="no segment lies in the stretch 30 to 34 s") as caught:
        kept(8.0, 30.0, 34.0)
    assert caught.value.reason == "too_short"


ENCRYPTION = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "0123456789abcdef0123456789abcdef",
    "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
}


def write_mute(path):
    """A file that declares sound, none of which decodes."""
    write_numbered(path, 50, codecs=("libx264", "flac"))
    path.write_bytes(path.read_bytes().replace(b"\xff\xf8", b"\0\0"))
    return path


def test_rows_say_what_sources_declare_and_what_was_mended(tmp_path):
    files = {
        "whole": write_numbered(tmp_path / "whole.mp4", 50),
        "silent": write_numbered(tmp_path / "silent.mp4", 50, waveform=None),
        "mute": write_mute(tmp_path / "mute.mkv"),
        "locked": write_numbered(tmp_path / "locked.mp4", 50, options=ENCRYPTION),
    }
    mirror = (-1, 0, 0, 0, 1, 0, 64, 0, 1)
    files["mirrored"] = set_display_matrix(write_numbered(tmp_path / "mirrored.mp4", 50), mirror)
    for part in (CLIPS_FOLDER, REJECTS_FOLDER):
        (tmp_path / "out" / part).mkdir(parents=True)
    sources = tuple(
        UnitSource(str(path), name, name, path.stat().st_size, None, None, None)
        for name, path in files.items()
    )
    ingester = UnitIngester(str(tmp_path / "out"), IngestSettings().model_dump(mode="json"))
    try:
        outcomes = list(ingester({"unit": Unit("unit", sources).to_json()}))
    finally:
        ingester.close()
    assert [outcome["reason"] for outcome in outcomes] == ["", "", "", "encrypted", ""]
    rows = read_columns(str(tmp_path / "out" / CLIPS_FOLDER / "unit.parquet"), CLIPS.names)
    by_source = {row["source"]: row for row in rows.to_pylist()}
    declared = {
        name: (row["declares_picture"], row["declares_sound"], row["has_audio"])
        for name, row in by_source.items()
    }
    assert declared == {
        "whole": (True, True, True),
        "silent": (True, False, False),
        "mute": (True, True, False),
        "mirrored": (True, True, True),
    }
    assert [name for name, row in by_source.items() if row["is_mirrored"]] == ["mirrored"]
    assert {row["rebased_clocks"] for row in by_source.values()} == {0}
    assert count_flaws(rows) == SourceFlaws(without_sound=1, damaged=1)

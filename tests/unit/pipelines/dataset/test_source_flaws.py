import pyarrow as pa
import pytest

from pipelines.dataset.schema import ADDED, CLIPS, check_columns, with_added
from pipelines.dataset.source_flaws import COLUMNS, SourceFlaws, count_flaws
from pipelines.errors import UserError

CLOCK = ("clock_leaps", "sound_gaps", "rebased_clocks", "held_picture", "picture_gaps")


def table(*rows):
    whole = {
        "num_frames": 8,
        "has_audio": True,
        "declares_picture": True,
        "declares_sound": True,
        "decode_errors": 0,
        "clock_leaps": 0,
        "sound_gaps": 0,
        "rebased_clocks": 0,
        "held_picture": 0,
        "picture_gaps": 0,
        "video_codec": "h264",
        "audio_codec": "aac",
    }
    schema = pa.schema([CLIPS.field(name) for name in COLUMNS])
    return pa.Table.from_pylist([whole | row for row in rows], schema=schema)


def test_each_source_counts_once_whatever_its_clips():
    found = count_flaws(
        table(
            {"source": "whole"},
            {"source": "whole"},
            # One clip has sound, so the source gave some.
            {"source": "half", "has_audio": False},
            {"source": "half", "decode_errors": 2},
            {"source": "mute", "has_audio": False, "decode_errors": 3},
            {"source": "mute", "has_audio": False, "decode_errors": 1},
            # The clock leaps in one clip, and the times of all that follow are counted.
            {"source": "dark", "num_frames": 0, "clock_leaps": 1, "rebased_clocks": 2},
            {"source": "dark", "num_frames": 0, "rebased_clocks": 2},
            {"source": "holes", "sound_gaps": 2},
            {"source": "avi", "rebased_clocks": 1},
            {"source": "avi", "rebased_clocks": 1},
            # A leap in a source without presentation times is still a flaw.
            {"source": "joined avi", "rebased_clocks": 1},
            {"source": "joined avi", "clock_leaps": 1, "rebased_clocks": 2},
            {"source": "late", "num_frames": 0},
            {"source": "late"},
            {"source": "music", "held_picture": 1},
            {"source": "music", "held_picture": 1},
            {"source": "lossy", "picture_gaps": 3},
            {"source": "pay", "num_frames": 0, "video_codec": "encrypted"},
            {"source": "pay", "num_frames": 0, "video_codec": "encrypted", "audio_codec": None},
            # What it does not declare is not missing.
            {"source": "song", "num_frames": 0, "declares_picture": False},
        )
    )
    assert found == SourceFlaws(
        without_picture=2,
        without_sound=1,
        encrypted=1,
        with_late_picture=1,
        with_held_picture=1,
        with_picture_gaps=1,
        with_partial_sound=1,
        damaged=2,
        leaping=2,
        with_sound_gaps=1,
        timed_by_order=1,
    )
    assert found.sentences() == [
        "sources that declare a picture and gave none: 2",
        "sources that declare sound and gave none: 1",
        "sources whose picture or sound is encrypted: 1",
        "sources whose picture begins late, so that clips lack it: 1",
        "sources whose picture ends early, so that its last frame stays on: 1",
        "sources with gaps between pictures, where the one before stays on: 1",
        "sources whose sound is missing in part of their clips: 1",
        "sources that are damaged in part: 2",
        "sources whose clock leaps, so that later times are counted on: 2",
        "sources with holes in the sound, which are silent there: 1",
    ]
    assert found.remarks() == [
        "sources whose pictures are timed by the order of frames, as is usual for AVI: 1"
    ]


def test_missing_presentation_times_are_no_flaw():
    found = count_flaws(table({"source": "avi", "rebased_clocks": 1}))
    assert found.sentences() == []
    assert found == SourceFlaws(timed_by_order=1)


def test_nothing_is_said_of_whole_sources_and_empty_tables():
    assert count_flaws(table({"source": "whole"})).sentences() == []
    assert count_flaws(table()) == SourceFlaws()


def test_shards_from_before_there_were_these_columns_are_read():
    added = {field.name for field in ADDED}
    old = pa.schema([field for field in CLIPS if field.name not in added], metadata=CLIPS.metadata)
    check_columns("shard", old, CLIPS)
    read = with_added(
        table({"source": "a", "has_audio": False}).drop_columns(
            ["declares_picture", "declares_sound", *CLOCK]
        ),
        COLUMNS,
    )
    assert read.column_names == list(COLUMNS)
    assert count_flaws(read) == SourceFlaws()
    with pytest.raises(UserError, match="has_audio is missing"):
        check_columns("shard", old.remove(old.get_field_index("has_audio")), CLIPS)

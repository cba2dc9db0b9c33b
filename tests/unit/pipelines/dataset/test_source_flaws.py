import pyarrow as pa
import pytest

from pipelines.dataset.schema import ADDED, CLIPS, check_columns, with_added
from pipelines.dataset.source_flaws import COLUMNS, SourceFlaws, count_flaws
from pipelines.errors import UserError


def table(*rows):
    whole = {
        "num_frames": 8,
        "has_audio": True,
        "declares_picture": True,
        "declares_sound": True,
        "decode_errors": 0,
        "rebased_clocks": 0,
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
            {"source": "dark", "num_frames": 0, "rebased_clocks": 2},
            # What it does not declare is not missing.
            {"source": "song", "num_frames": 0, "declares_picture": False},
        )
    )
    assert found == SourceFlaws(without_picture=1, without_sound=1, damaged=2, rebased=1)
    assert found.sentences() == [
        "sources that declare a picture and gave none: 1",
        "sources that declare sound and gave none: 1",
        "sources that are damaged in part: 2",
        "sources whose clock leaps or is missing, so that times were counted: 1",
    ]


def test_nothing_is_said_of_whole_sources_and_empty_tables():
    assert count_flaws(table({"source": "whole"})).sentences() == []
    assert count_flaws(table()) == SourceFlaws()


def test_shards_from_before_there_were_these_columns_are_read():
    added = {field.name for field in ADDED}
    old = pa.schema([field for field in CLIPS if field.name not in added], metadata=CLIPS.metadata)
    check_columns("shard", old, CLIPS)
    read = with_added(
        table({"source": "a", "has_audio": False}).drop_columns(
            ["declares_picture", "declares_sound", "rebased_clocks"]
        ),
        COLUMNS,
    )
    assert read.column_names == list(COLUMNS)
    assert count_flaws(read) == SourceFlaws()
    with pytest.raises(UserError, match="has_audio is missing"):
        check_columns("shard", old.remove(old.get_field_index("has_audio")), CLIPS)

import os
import subprocess
import sys
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.shards import ShardWriter
from pipelines.errors import UserError
from pipelines.files import locked, remove_leftovers, temporary_name, write_json

SCHEMA = pa.schema([("name", pa.string()), ("data", pa.large_binary())])


def row(number, num_bytes=10):
    return {"name": f"n{number}", "data": bytes([number % 256]) * num_bytes}


def test_nothing_is_visible_before_the_commit(tmp_path):
    writer = ShardWriter(tmp_path / "a.parquet", SCHEMA, rows_per_group=2)
    for number in range(5):
        writer.add(row(number))
    assert not list(tmp_path.glob("*.parquet"))
    writer.commit()
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == [row(number) for number in range(5)]


def test_a_discarded_shard_leaves_nothing(tmp_path):
    writer = ShardWriter(tmp_path / "a.parquet", SCHEMA, rows_per_group=2)
    for number in range(5):
        writer.add(row(number))
    writer.discard()
    assert not list(tmp_path.iterdir())


def test_rows_are_written_group_by_group_and_early_if_they_are_large(tmp_path):
    writer = ShardWriter(tmp_path / "a.parquet", SCHEMA, rows_per_group=4)
    written = [writer.add(row(number)) for number in range(4)]
    written += [writer.add(row(4, 40_000_000)), writer.add(row(5, 40_000_000)), writer.add(row(6))]
    writer.commit()
    assert written == [False, False, False, True, False, True, False]
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    assert [metadata.row_group(i).num_rows for i in range(3)] == [4, 2, 1]


def test_waiting_rows_can_be_taken_back(tmp_path):
    writer = ShardWriter(tmp_path / "a.parquet", SCHEMA, rows_per_group=4)
    for number in range(3):
        writer.add(row(number))
    writer.drop_last(2)
    writer.drop_last(0)
    writer.add(row(9))
    writer.commit()
    assert pq.read_table(tmp_path / "a.parquet")["name"].to_pylist() == ["n0", "n9"]


def test_a_shard_without_rows_is_a_file_with_the_schema(tmp_path):
    ShardWriter(tmp_path / "a.parquet", SCHEMA, rows_per_group=4).commit()
    assert pq.read_table(tmp_path / "a.parquet").schema.equals(SCHEMA)


def test_tensors_have_no_dictionary_and_no_compression(tmp_path):
    writer = ShardWriter(tmp_path / "a.parquet", SCHEMA, rows_per_group=4)
    writer.add(row(0))
    writer.commit()
    column = pq.read_metadata(tmp_path / "a.parquet").row_group(0).column(1)
    assert "DICTIONARY" not in str(column.encodings)
    assert column.compression == "UNCOMPRESSED"


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    temporary_name(tmp_path / "a.parquet").write_bytes(b"half")
    (tmp_path / "b.parquet").write_bytes(b"")
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["b.parquet"]


def test_json_is_replaced_as_a_whole(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 1\n}\n'


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path):
    program = (
        "import sys; from pathlib import Path; from pipelines.files import locked\n"
        f"with locked(Path({str(tmp_path / 'lock')!r}), 'it'):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=f"it is being written by process {other.pid} on"),
            locked(tmp_path / "lock", "it"),
        ):
            pass
        other.kill()
    with locked(tmp_path / "lock", "it"):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


def test_a_lock_is_waited_for_as_long_as_asked(tmp_path):
    held, has_ended = threading.Event(), []

    def hold():
        with locked(tmp_path / "lock", "it"):
            held.set()
            threading.Event().wait(0.5)
            has_ended.append(True)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with (
        pytest.raises(UserError, match="it is being written by"),
        locked(tmp_path / "lock", "it", patience_seconds=0.01),
    ):
        pass
    with locked(tmp_path / "lock", "it", patience_seconds=30):
        assert has_ended
    holder.join()

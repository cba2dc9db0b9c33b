import hashlib
import os
import threading
import time

import fsspec
import pytest

from pipelines.media import DecodeError
from pipelines.spool import Spool


@pytest.fixture
def memory():
    """A filesystem of fsspec."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    return store


def files(folder):
    return [path for path in folder.rglob("*") if path.name != "lock"]


def test_a_local_file_is_taken_as_it_is(tmp_path):
    with Spool(max_bytes=1, folder=tmp_path / "spool").local_copy("/a b.mp4", None) as path:
        assert path == "/a b.mp4"
    assert files(tmp_path) == []


def test_a_remote_file_is_there_while_it_is_needed(tmp_path, memory):
    content = os.urandom(5_000_000)
    memory.pipe("/a b.mp4", content)
    spool = Spool(max_bytes=10_000_000, folder=tmp_path)
    with spool.local_copy("memory://a b.mp4", hashlib.sha256(content).hexdigest()) as path:
        assert path.endswith(".spool.mp4")
        with open(path, "rb") as file:
            assert file.read() == content
    assert files(tmp_path) == []


def test_a_file_that_is_gone_too_large_or_another_one_is_refused(tmp_path, memory):
    memory.pipe("/a.mp4", b"12345")
    spool = Spool(max_bytes=4, folder=tmp_path)
    for name, source_hash, bytes_, reason, message in (
        ("gone", None, 9, "unreadable", "gone"),
        ("a.mp4", None, 4, "too_large", r"5 bytes, limits\.max_spool_bytes \(4\)"),
        ("a.mp4", "other", 5, "unreadable", "has changed since it was listed"),
    ):
        spool = Spool(max_bytes=bytes_, folder=tmp_path)
        with (
            pytest.raises(DecodeError, match=message) as caught,
            spool.local_copy(f"memory://{name}", source_hash),
        ):
            pass
        assert caught.value.reason == reason
    assert files(tmp_path) == []


def test_a_worker_waits_until_there_is_room(tmp_path, memory):
    memory.pipe("/a.mp4", b"12345")
    spool = Spool(max_bytes=9, folder=tmp_path)
    came = []

    def second():
        with Spool(max_bytes=9, folder=tmp_path).local_copy("memory://a.mp4", None):
            came.append(len(files(tmp_path)))

    with spool.local_copy("memory://a.mp4", None):
        other = threading.Thread(target=second)
        other.start()
        time.sleep(0.5)
        assert came == []
    other.join()
    assert came == [1]


def test_what_a_killed_worker_left_is_removed(tmp_path, memory):
    memory.pipe("/a.mp4", b"12345")
    (tmp_path / "0123.9.spool.mp4").write_bytes(b"123456789")
    with Spool(max_bytes=9, folder=tmp_path).local_copy("memory://a.mp4", None):
        assert len(files(tmp_path)) == 1
    assert files(tmp_path) == []

import hashlib
import io
import os
import resource
import tempfile
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from pipelines.filesystems import RemoteFile, opened
from pipelines.media.container import DecodeError
from pipelines.sources.fingerprints import _hash_row, _hash_stream
from pipelines.sources.spool import BrokenOffError, Spool, _transfer


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


CONTENT = b"0123456789" * 1000


@contextmanager
def web_server(num_broken):
    """A server that breaks off so many times before it sends all, and its requests."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()

        def do_GET(self):
            requests.append(self.path)
            self.do_HEAD()
            self.wfile.write(CONTENT[: 100 if len(requests) <= num_broken else None])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/a.mp4", requests
    finally:
        server.shutdown()
        server.server_close()


def test_a_transfer_that_breaks_off_is_begun_again(tmp_path):
    source_hash = hashlib.sha256(CONTENT).hexdigest()
    with (
        web_server(2) as (uri, _),
        Spool(max_bytes=10_000, folder=tmp_path).local_copy(uri, source_hash) as path,
        open(path, "rb") as file,
    ):
        assert file.read() == CONTENT
    assert files(tmp_path) == []


def test_a_transfer_that_breaks_off_every_time_is_given_up(tmp_path):
    with web_server(99) as (uri, requests):
        copy = Spool(max_bytes=10_000, folder=tmp_path).local_copy(uri, None, len(CONTENT))
        with pytest.raises(DecodeError, match="3 times") as caught, copy:
            pass
    assert caught.value.reason == "unreadable"
    assert len(requests) == 3
    assert files(tmp_path) == []


def test_nothing_is_asked_of_the_server_before_there_is_room(tmp_path):
    """It would end a connection on which nothing is read."""
    spool = Spool(max_bytes=len(CONTENT), folder=tmp_path)
    with web_server(0) as (uri, requests):

        def second():
            with spool.local_copy(uri, None, len(CONTENT)):
                pass

        with spool.local_copy(uri, None, len(CONTENT)):
            other = threading.Thread(target=second)
            other.start()
            time.sleep(0.5)
            assert len(requests) == 1
        other.join()
        assert len(requests) == 2


def test_a_file_that_grew_since_it_was_listed_is_refused(tmp_path, memory):
    memory.pipe("/a.mp4", b"12345")
    copy = Spool(max_bytes=9, folder=tmp_path).local_copy("memory://a.mp4", None, 4)
    with pytest.raises(DecodeError, match="has changed since it was listed"), copy:
        pass


def test_a_disk_that_is_full_is_named(tmp_path, memory):
    memory.pipe("/a.mp4", b"12345")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3, hard))
    try:
        with (
            pytest.raises(OSError, match="File too large") as caught,
            Spool(max_bytes=9, folder=tmp_path).local_copy("memory://a.mp4", None),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path)


def test_a_file_of_unknown_size_that_grew_is_not_called_too_large(tmp_path):
    content = io.BytesIO(b"12345")
    remote = RemoteFile(content, None, None)
    with (tmp_path / "copy").open("w+b") as copy:
        with pytest.raises(DecodeError, match="has changed since") as caught:
            _transfer(remote, copy, 4, None, is_budget=False)
        assert caught.value.reason == "unreadable"
        content.seek(0)
        with pytest.raises(DecodeError, match=r"more than limits\.max_spool_bytes \(4\)") as caught:
            _transfer(remote, copy, 4, None, is_budget=True)
        assert caught.value.reason == "too_large"


@pytest.fixture
def counted(monkeypatch, memory, tmp_path):
    """Counts the bytes that are read of remote files; the spool lies in the temporary folder."""
    count = [0]

    class Counting(io.RawIOBase):
        def __init__(self, stream):
            self._stream = stream

        def read(self, size=-1):
            data = self._stream.read(size)
            count[0] += len(data)
            return data

    @contextmanager
    def opened_and_counted(uri):
        with opened(uri) as remote:
            yield RemoteFile(Counting(remote.stream), remote.byte_size, remote.version)

    for module in ("spool", "fingerprints"):
        monkeypatch.setattr(f"pipelines.sources.{module}.opened", opened_and_counted)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return count


def hashed(name, spool_bytes=10_000_000):
    row = {"number": 0, "path": f"memory://{name}".encode(), "version": None, "source_hash": None}
    return _hash_row(row, 50_000_000, 64_000_000, spool_bytes)["source_hash"]


def test_a_file_that_was_hashed_is_not_fetched_again(counted, memory, tmp_path):
    content = os.urandom(5_000_000)
    memory.pipe("/a b.mp4", content)
    source_hash = hashed("a b.mp4")
    assert source_hash == hashlib.sha256(content).hexdigest()
    spool = Spool(max_bytes=10_000_000)
    for fetched in (1, 2):  # the copy is gone after its first use
        with spool.local_copy("memory://a b.mp4", source_hash, len(content)) as path:
            assert path.endswith(".spool.mp4")
            assert Path(path).read_bytes() == content
        assert files(tmp_path) == [tmp_path / f"xkd-spool-{os.getuid()}"]
        assert counted[0] == fetched * len(content)


@pytest.mark.parametrize("damage", [b"", b"x" * 5_000_000])
def test_a_kept_copy_that_is_damaged_is_fetched_again(counted, memory, tmp_path, damage):
    content = os.urandom(5_000_000)
    memory.pipe("/a.mp4", content)
    source_hash = hashed("a.mp4")
    (kept,) = tmp_path.rglob("*.kept")
    kept.write_bytes(damage)
    with Spool(max_bytes=10_000_000).local_copy("memory://a.mp4", source_hash, 5_000_000) as path:
        assert Path(path).read_bytes() == content
    assert counted[0] == 2 * len(content)


def test_kept_copies_give_way_and_never_exceed_the_budget(counted, memory, tmp_path):
    hashes = {}
    for number in range(4):
        memory.pipe(f"/{number}.mp4", os.urandom(3_000_000))
        hashes[number] = hashed(f"{number}.mp4")
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.kept")) <= 10_000_000
    assert len([*tmp_path.rglob("*.kept")]) == 3
    spool = Spool(max_bytes=10_000_000)
    memory.pipe("/large.mp4", os.urandom(8_000_000))
    with spool.local_copy("memory://large.mp4", None, 8_000_000):
        assert [*tmp_path.rglob("*.kept")] == []
    with spool.local_copy("memory://0.mp4", hashes[0], 3_000_000) as path:
        assert os.path.getsize(path) == 3_000_000


def test_copies_that_nobody_decodes_are_removed(counted, memory, tmp_path):
    memory.pipe("/a.mp4", b"12345")
    hashed("a.mp4")
    (kept,) = tmp_path.rglob("*.kept")
    Spool(max_bytes=10_000_000).forget()
    assert not kept.exists()
    hashed("a.mp4")
    os.utime(kept, (0, 0))
    memory.pipe("/b.mp4", b"123")
    with Spool(max_bytes=10_000_000).local_copy("memory://b.mp4", None):
        assert not kept.exists()


def test_a_transfer_that_breaks_off_keeps_nothing(counted, memory, tmp_path, monkeypatch):
    memory.pipe("/a.mp4", b"12345")
    with pytest.raises(BrokenOffError):
        _hash_stream_of(tmp_path)
    assert files(tmp_path / f"xkd-spool-{os.getuid()}") == []


def _hash_stream_of(folder):
    remote = RemoteFile(io.BytesIO(b"123"), 5, None)
    with Spool(max_bytes=100).keeping("memory://a.mp4", 5) as copy:
        _hash_stream(remote, 100, copy)

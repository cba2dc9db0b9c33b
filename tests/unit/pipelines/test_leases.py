"""One writer at a time in a bucket, whoever dies, hangs or starts at the same moment."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pipelines import leases
from pipelines.errors import UserError
from pipelines.files import locked, replacing, scratch_folder, write_json
from pipelines.leases import LeaseLostError
from pipelines.storage import RemotePath, path_of
from pipelines.transfers import folder_on_disk
from tests.helpers.bucket import BUCKET, serving, wait_until

HOME = f"s3://{BUCKET}/leases"
HOLDER = """
import sys, time
from pipelines import leases
from pipelines.errors import UserError
from pipelines.files import locked, write_json
from pipelines.storage import path_of
leases.LEASE_SECONDS, leases.RENEW_SECONDS = 6.0, 0.5
folder = path_of(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    with locked(folder / "lock", "run"):
        print("holds", flush=True)
        time.sleep(float(sys.argv[2]))
        write_json(folder / f"{sys.argv[3]}.json", 1)
        print("wrote", flush=True)
except UserError as error:
    print("refused", error, flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 6.0)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.5)


def start(folder, seconds, name):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(seconds), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert holder.stdout.readline() == "ready\n"
    return holder


def go(holder):
    holder.stdin.write("go\n")
    holder.stdin.flush()


def write(path, scratch=None, *, fails=False):
    with replacing(path, scratch) as temporary:
        temporary.write_text("some text")
        if fails:
            raise RuntimeError


def test_a_killed_holder_of_this_machine_is_followed_at_once(server):
    folder = path_of(f"{HOME}/killed")
    holder = start(folder, 60, "never")
    go(holder)
    assert holder.stdout.readline() == "holds\n"
    refused = pytest.raises(UserError, match=f"written by process {holder.pid} on")
    with refused, locked(folder / "lock", "run"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(folder / "lock", "run"):
        write_json(folder / "mine.json", 1)
    assert (folder / "mine.json").exists()
    assert not (folder / "never.json").exists()


def test_a_holder_that_hangs_elsewhere_is_followed_and_commits_nothing(server, monkeypatch):
    folder = path_of(f"{HOME}/hangs")
    holder = start(folder, 4, "late")
    go(holder)
    assert holder.stdout.readline() == "holds\n"
    monkeypatch.setattr(leases, "_machine", lambda: "another machine")
    holder.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    with locked(folder / "lock", "run"):
        assert time.monotonic() - begun > 1.0  # what was renewed a moment ago is not over
        holder.send_signal(signal.SIGCONT)
        holder.wait(30)
        assert "wrote" not in holder.stdout.read()
        write_json(folder / "mine.json", 1)
    assert not (folder / "late.json").exists()
    assert server.names("leases/hangs/lock") == ["clock"]


def test_a_holder_elsewhere_that_renews_is_not_followed(server, monkeypatch):
    folder = path_of(f"{HOME}/lives")
    holder = start(folder, 8, "its")
    go(holder)
    assert holder.stdout.readline() == "holds\n"
    monkeypatch.setattr(leases, "_machine", lambda: "another machine")
    refused = pytest.raises(UserError, match="is being written by process")
    with refused, locked(folder / "lock", "run"):
        pass
    with locked(folder / "lock", "run", patience_seconds=60.0):
        assert (folder / "its.json").exists()
    assert holder.wait() == 0


def test_of_many_that_start_together_one_at_a_time_writes(server):
    folder = path_of(f"{HOME}/many")
    starters = [start(folder, 10, str(number)) for number in range(4)]
    for starter in starters:
        go(starter)
    said = [starter.communicate()[0] for starter in starters]
    assert sum("holds" in text for text in said) == 1, said
    assert sum("refused run is being written by process" in text for text in said) == 3
    assert [path.name for path in folder.glob("*.json")] == [
        f"{number}.json" for number, text in enumerate(said) if "wrote" in text
    ]


def test_a_claim_that_is_withdrawn_while_it_is_read_is_not_there(server, monkeypatch):
    file = path_of(f"{HOME}/withdrawn.json")
    file.write_bytes(b"{}")
    opened = RemotePath.open

    def withdrawn(self, mode="rb"):
        stream = opened(self, mode)
        self.unlink()
        return stream

    monkeypatch.setattr(RemotePath, "open", withdrawn)
    with pytest.raises(FileNotFoundError):
        file.read_text()


def test_a_holder_whose_claim_is_gone_commits_nothing(server):
    folder = path_of(f"{HOME}/gone")
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        with locked(folder / "lock", "run"):
            for claim in folder.glob("lock/*.json"):
                other = json.loads(claim.read_text()) | {"number": 9, "host": "elsewhere"}
                claim.unlink()
                claim.with_name("other.json").write_bytes(json.dumps(other).encode())
            with pytest.raises(LeaseLostError, match=r"on elsewhere since .* has taken over"):
                write_json(folder / "mine.json", 1)
            wait_until(stopped.is_set)  # the program is asked to end
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert not (folder / "mine.json").exists()


def test_a_claim_of_another_version_is_respected(server):
    folder = path_of(f"{HOME}/version")
    (folder / "lock/abc.json").write_bytes(b'{"unknown": 1}')
    begun = time.monotonic()
    with locked(folder / "lock", "run"):
        assert time.monotonic() - begun > 1.0


def test_a_worker_of_an_ended_run_adds_nothing(server):
    folder = path_of(f"{HOME}/ended")
    with scratch_folder(folder) as old:
        write(folder / "a.parquet", old)
        with scratch_folder(folder):
            pass  # the next run
        with pytest.raises(OSError, match="has ended"):
            write(folder / "b.parquet", old)
    assert server.names("leases/ended") == ["a.parquet"]


def test_a_failed_write_leaves_the_previous_content(server):
    file = path_of(f"{HOME}/kept/file.json")
    write_json(file, 1)
    with pytest.raises(RuntimeError):
        write(file, fails=True)
    large = path_of(f"{HOME}/kept/large.bin")
    for size in (70_000_000, 5):
        with replacing(large) as temporary:
            temporary.write_bytes(b"x" * size)
        assert large.size() == size
    assert file.read_text() == "1\n"
    assert server.names("leases/kept") == ["file.json", "large.bin"]


def test_what_a_killed_process_left_on_the_disk_goes_after_an_hour(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = subprocess.Popen(["true"])
    dead.wait()
    for pid in (dead.pid, os.getpid()):
        (tmp_path / f"xkd-upload-{pid}-x").mkdir()
        os.utime(tmp_path / f"xkd-upload-{pid}-x", (0, 0))
    (tmp_path / f"xkd-upload-{dead.pid}-new").mkdir()
    with folder_on_disk() as folder:
        assert folder.parent == tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"xkd-upload-{os.getpid()}-x", f"xkd-upload-{dead.pid}-new"]
    )


def test_names_are_keys_as_they_are(server):
    folder = path_of(f"{HOME}/a b/100%25 é#1?/")
    write_json(folder / "x+y&z.json", 1)
    assert server.names("leases/a b/100%25 é#1?") == ["x+y&z.json"]
    assert [str(path) for path in folder.parent.glob("*/*.json")] == [
        f"{HOME}/a b/100%25 é#1?/x+y&z.json"
    ]
    assert (folder.name, folder.parent.name) == ("100%25 é#1?", "a b")
    assert path_of(f"s3://{BUCKET}").parent == path_of(f"s3://{BUCKET}")

"""Ingest writes into a bucket what it writes on a disk, and keeps the same promises."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from pipelines.config.ingest import IngestSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.errors import UserError
from pipelines.files import check_writable, locked
from pipelines.filesystems import _away, _s3, filesystem_of, list_files
from pipelines.ingest.ingest import check_ingest, ingest
from pipelines.storage import path_of
from tests.helpers.bucket import BUCKET, serving
from tests.helpers.media import write_numbered

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
SETTINGS = IngestSettings(short_side=32, segment_seconds=2.0, sources_per_shard=2, num_workers=1)
OUTPUT = f"s3://{BUCKET}/my runs/100% é"
DRIVER = """
import sys
import ray
from pipelines.config.ingest import IngestSettings
from pipelines.ingest.ingest import ingest
videos, output, settings = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
         object_store_memory=100_000_000)
print("begun", flush=True)
ingest(videos, output, IngestSettings.model_validate_json(settings), on_progress=lambda *_: None)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for label, count in (("dog", 5), ("cat", 4)):
        (folder / label).mkdir()
        for number in range(count):
            write_numbered(
                folder / label / f"{number}.mp4", 40 + 10 * number + 5 * (label == "cat")
            )
    shutil.copy(folder / "dog/0.mp4", folder / "cat/copy.mp4")
    (folder / "cat/text.mp4").write_text("no media")
    return folder


def run(videos, output, settings=SETTINGS):
    return ingest(str(videos), str(output), settings, on_progress=lambda *_: None)


def rows(output):
    found = {}
    for part, key in (("clips", "clip_id"), ("rejects", "source")):
        files = [entry.uri for entry in list_files(f"{output}/{part}")]
        tables = []
        for file in sorted(name for name in files if name.endswith(".parquet")):
            filesystem, path = filesystem_of(file)
            for row in pq.read_table(path, filesystem=filesystem).to_pylist():
                tables.append({"file": file.rpartition("/")[2], **row})
        found[part] = sorted(tables, key=lambda row: row[key])
    return found


@pytest.fixture(scope="module")
def local(server, videos, ray_of_this_environment, tmp_path_factory):
    """What an undisturbed run writes to the disk."""
    output = tmp_path_factory.mktemp("local") / "clips"
    return output, run(videos, output)


def unexpected(server, output):
    expected = (".ingest/settings.json", ".ingest/fingerprints.parquet", ".ingest/lock/clock")
    return [
        name
        for name in server.names(output.partition(f"{BUCKET}/")[2].rstrip("/"))
        if name not in (*expected, "index.arrow", "manifest.json")
        and not (name.startswith(("clips/", "rejects/")) and name.endswith(".parquet"))
    ]


def test_a_bucket_holds_what_the_disk_holds(server, videos, local):
    output = f"{OUTPUT}/one/"
    check_ingest(str(videos), output, SETTINGS)
    summary = run(videos, output, SETTINGS.model_copy(update={"num_workers": 2}))
    assert summary == local[1]
    assert rows(output.rstrip("/")) == rows(local[0])
    assert unexpected(server, output) == []
    dataset = ClipDataset.open(output)
    assert dataset.dataset_id == summary.dataset_id
    assert dataset.index.order_sha256 == ClipDataset.open(local[0]).index.order_sha256
    assert run(videos, output).new_clips == 0


def test_changes_of_the_input_are_followed(server, videos, local, tmp_path):
    shutil.copytree(videos, tmp_path / "videos")
    run(tmp_path / "videos", f"{OUTPUT}/changes")
    (tmp_path / "videos/dog/1.mp4").unlink()
    (tmp_path / "videos/dog/2.mp4").rename(tmp_path / "videos/dog/renamed.mp4")
    write_numbered(tmp_path / "videos/cat/new.mp4", 77)
    again = run(tmp_path / "videos", f"{OUTPUT}/changes")
    there = run(tmp_path / "videos", tmp_path / "clips")
    assert (again.changes.removed, again.changes.renamed, again.changes.new) == (1, 1, 1)
    assert again.dataset_id == there.dataset_id
    with pytest.raises(UserError, match="holds another clip dataset"):
        check_ingest(str(videos), f"{OUTPUT}/changes", SETTINGS)


def test_a_second_writer_is_refused_by_name(server, videos, local):
    output = f"{OUTPUT}/held"
    with locked(path_of(output) / ".ingest/lock", "held"):
        message = rf"being written by process {os.getpid()} on \S+ since 20\d\d-.*wait for it"
        with pytest.raises(UserError, match=message):
            run(videos, output)
    with locked(path_of(output) / ".ingest/lock", "held"):
        pass


def test_whatever_cannot_be_written_to_is_refused_in_a_line(server, videos, monkeypatch):
    with pytest.raises(UserError, match="the bucket does not exist"):
        check_writable("s3://no-such-bucket/clips")
    server.read_only(True)
    try:
        with pytest.raises(UserError, match=r"not writable: the store does not allow it"):
            check_writable(f"{OUTPUT}/read-only")
    finally:
        server.read_only(False)
    check_writable(f"{OUTPUT}/read-only")
    assert server.names("my runs/100% é/read-only") == []
    with pytest.raises(UserError, match="not on a web server"):
        check_writable("https://host/folder")
    monkeypatch.setattr("pipelines.filesystems._FIRST_ATTEMPTS", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the store does not answer; AWS_ENDPOINT_URL"):
        check_writable("s3://other/clips")


def test_why_a_store_refuses_is_said_in_a_line(server):
    for code, words in (
        ("InvalidAccessKeyId", "the store does not know these credentials"),
        ("SignatureDoesNotMatch", "the store does not accept these credentials"),
        ("ExpiredToken", "the store does not accept AWS_SESSION_TOKEN any more"),
        ("AllAccessDisabled", "the store does not allow it"),
    ):
        server.refusing(code)
        try:
            with pytest.raises(UserError, match=rf"^output \(.*\) is not writable: {words} \(.*$"):
                check_writable(f"{OUTPUT}/refused")
        finally:
            server.refusing("")


def test_a_clock_that_is_off_by_20_minutes_is_named_soon(server, monkeypatch):
    monkeypatch.setattr("pipelines.filesystems._FIRST_ATTEMPTS", 2)
    _s3.cache_clear()
    server.clock(1200.0)
    try:
        with pytest.raises(UserError, match=r"the clock of this machine and that of the store"):
            check_writable(f"{OUTPUT}/other clock")
    finally:
        server.clock(0.0)
        _away.clear()
    check_writable(f"{OUTPUT}/other clock")


def test_an_overloaded_bucket_is_waited_for(server, videos, local):
    server.overloaded_for(3.0)
    assert run(videos, f"{OUTPUT}/overloaded").dataset_id == local[1].dataset_id
    assert rows(f"{OUTPUT}/overloaded") == rows(local[0])


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_drivers_killed_at_random_moments(server, videos, local, tmp_path):
    generator = random.Random(0)
    output = f"{OUTPUT}/killed"
    command = [sys.executable, "-c", DRIVER, str(videos), output, SETTINGS.model_dump_json()]
    num_kills = 0
    for _ in range(5):
        driver = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        assert driver.stdout is not None
        driver.stdout.readline()
        time.sleep(generator.uniform(0.0, 6.0))
        num_kills += driver.poll() is None
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert num_kills
    assert run(videos, output).dataset_id == local[1].dataset_id
    assert rows(output) == rows(local[0])
    assert unexpected(server, output) == []


# That a bucket holds what the disk holds, in folders too, is said above.
@pytest.mark.parametrize("where", ["disk", pytest.param("bucket", marks=pytest.mark.slow)])
def test_shards_of_a_large_dataset_lie_in_subfolders(
    server, videos, local, tmp_path, monkeypatch, where
):
    monkeypatch.setattr("pipelines.ingest.plan.MAX_SHARDS_PER_FOLDER", 3)
    output = str(tmp_path / "clips") if where == "disk" else f"{OUTPUT}/large"
    assert run(videos, output) == local[1]
    assert rows(output) == rows(local[0])
    dataset, flat = ClipDataset.open(output), ClipDataset.open(local[0])
    names = [shard.removeprefix(f"{output}/clips/") for shard in dataset.shards]
    assert all(name[3] == "/" and name[4:7] == name[:3] for name in names)
    assert dataset.index.order_sha256 == flat.index.order_sha256
    assert len(dataset.rejects()) == len(flat.rejects()) == 2
    path_of(f"{output}/index.arrow").unlink()
    path_of(f"{output}/clips/{names[0]}").unlink()
    assert run(videos, output).new_clips > 0  # decodes what that shard held
    assert ClipDataset.open(output).index.order_sha256 == flat.index.order_sha256

"""Buckets and web servers as sources: a real S3-compatible server and a real web server."""

import functools
import http.server
import os
import shutil
import tempfile
import threading
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs as pafs

from pipelines.config.ingest import IngestSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.errors import UserError
from pipelines.ingest.ingest import ingest
from pipelines.sources.listing import list_sources
from pipelines.training.feed import Feed
from tests.helpers.clip_datasets import FEED, write_dataset
from tests.helpers.media import write_numbered

pytestmark = pytest.mark.ray
SETTINGS = IngestSettings(short_side=32, segment_seconds=2.0)
ODD_NAME = 'it\'s a "b" #1 100%.mp4'


@pytest.fixture(scope="module")
def bucket():
    """A server with a bucket; the environment says where it is, as it would for a real one."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_REGION", "us-east-1")
        environment.setenv("TMPDIR", tempfile.mkdtemp(prefix="xkd-test-"))
        store = pafs.S3FileSystem(
            endpoint_override=f"http://{host}:{port}",
            region="us-east-1",
            allow_bucket_creation=True,
        )
        store.create_dir("media")
        yield store
        assert list(Path(os.environ["TMPDIR"]).rglob("*.spool*")) == []
        shutil.rmtree(os.environ["TMPDIR"])
    server.stop()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for label, name, num_frames in (("dog", "a.mp4", 60), ("cat", ODD_NAME, 110)):
        (folder / label).mkdir()
        write_numbered(folder / label / name, num_frames)
    shutil.copy(folder / "dog/a.mp4", folder / "cat/copy.mp4")
    (folder / "cat/text.mp4").write_text("no media")
    (folder / "cat/empty.mp4").touch()
    return folder


def upload(bucket, folder, prefix):
    for file in folder.rglob("*"):
        if file.is_file():
            with bucket.open_output_stream(f"media/{prefix}/{file.relative_to(folder)}") as out:
                out.write(file.read_bytes())


def run(location, output, settings=SETTINGS):
    return ingest(str(location), str(output), settings, on_progress=lambda *_: None)


def rows(output):
    columns = ["clip_id", "label", "source", "source_hash", "frames", "waveform"]
    table = pq.read_table(output / "clips", columns=columns)
    return sorted(table.to_pylist(), key=lambda row: row["clip_id"])


@pytest.fixture(scope="module")
def made(bucket, videos, ray_of_this_environment, tmp_path_factory):
    """The same files from the local disk."""
    output = tmp_path_factory.mktemp("made") / "clips"
    return output, run(videos, output)


REASONS = {"duplicate": 1, "empty_file": 1, "not_media": 1}


def test_a_bucket_gives_the_same_clips_as_the_disk(bucket, videos, made, tmp_path):
    upload(bucket, videos, "all")
    summary = run("s3://media/all/", tmp_path / "clips")
    assert summary.dataset_id == made[1].dataset_id
    assert summary.rejects_by_reason == made[1].rejects_by_reason == REASONS
    found, expected = rows(tmp_path / "clips"), rows(made[0])
    assert [row.pop("source") for row in found] == [
        row.pop("source").replace(str(videos), "s3://media/all") for row in expected
    ]
    assert found == expected
    assert run("s3://media/all/", tmp_path / "clips").new_clips == 0


@pytest.mark.slow
def test_a_version_tag_stands_for_the_bytes_of_a_large_object(bucket, videos, made, tmp_path):
    upload(bucket, videos / "dog", "tags")
    limits = SETTINGS.limits.model_copy(update={"max_hashed_remote_bytes": 0})
    settings = SETTINGS.model_copy(update={"limits": limits})
    summary = run("s3://media/tags", tmp_path / "clips", settings)
    (there,) = {row["source_hash"] for row in rows(tmp_path / "clips")}
    assert there not in {row["source_hash"] for row in rows(made[0])}
    assert run("s3://media/tags", tmp_path / "clips", settings).dataset_id == summary.dataset_id
    upload(bucket, videos / "dog", "tags/more")
    again = run("s3://media/tags", tmp_path / "clips", settings)
    assert (again.new_clips, again.rejects_by_reason) == (0, {"duplicate": 1})


@pytest.mark.slow
def test_what_is_larger_than_the_budget_is_rejected(bucket, videos, made, tmp_path):
    upload(bucket, videos, "budget")
    sizes = sorted((videos / name).stat().st_size for name in ("dog/a.mp4", f"cat/{ODD_NAME}"))
    limits = SETTINGS.limits.model_copy(update={"max_spool_bytes": sizes[0]})
    settings = SETTINGS.model_copy(update={"limits": limits})
    summary = run("s3://media/budget", tmp_path / "clips", settings)
    assert (summary.accepted, summary.rejects_by_reason) == (1, REASONS | {"too_large": 1})


def test_a_list_on_a_web_server_names_files_beside_it_and_elsewhere(bucket, videos, made, tmp_path):
    upload(bucket, videos / "cat", "web")
    shutil.copytree(videos / "dog", tmp_path / "web")
    quoted = ODD_NAME.replace('"', '""')
    (tmp_path / "web/list.csv").write_text(
        f'path,label\na.mp4,dog\ngone.mp4,dog\n"s3://media/web/{quoted}",cat\n'
        "s3://media/web/gone.mp4,cat\nhttp://127.0.0.1:9/refused.mp4,cat\n"
    )
    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(UserError, match="a web server has no folders"):
            list_sources(f"{address}/", "auto")
        with pytest.raises(UserError, match=r"gone\.csv\) cannot be read"):
            list_sources(f"{address}/gone.csv", "auto")
        summary = run(f"{address}/list.csv", tmp_path / "clips")
        again = run(f"{address}/list.csv", tmp_path / "clips")
        server.shutdown()
    assert (summary.accepted, summary.rejects_by_reason) == (2, {"unreadable": 3})
    assert again.new_clips == 0
    found, expected = rows(tmp_path / "clips"), rows(made[0])
    assert [(row["clip_id"], row["frames"]) for row in found] == [
        (row["clip_id"], row["frames"]) for row in expected
    ]


def test_what_a_web_address_asks_for_is_no_part_of_the_folder(tmp_path):
    (tmp_path / "list.csv").write_text("path\na.mp4\n")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        (source,) = list_sources(f"{address}/list.csv?sig=a/b", "auto").sources
        server.shutdown()
    assert source.uri == f"{address}/a.mp4"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A web server that says nothing."""

    def log_message(self, *_):
        pass


def test_a_clip_dataset_in_a_bucket_is_read_as_one_on_the_disk(bucket, tmp_path):
    local = ClipDataset.open(write_dataset(tmp_path / "clips", 20))
    upload(bucket, tmp_path / "clips", "dataset")
    remote = ClipDataset.open("s3://media/dataset")
    assert remote.dataset_id == local.dataset_id
    assert remote.index.clip_id.tolist() == local.index.clip_id.tolist()
    for one, other in zip(
        Feed(remote, **FEED, batch_size=8).batches(0),
        Feed(local, **FEED, batch_size=8).batches(0),
        strict=False,
    ):
        assert one.clip_ids == other.clip_ids
        assert one.clips.frames.equal(other.clips.frames)
        if one.epochs[-1]:
            break
    with pytest.raises(UserError, match=r"s3://media/nowhere\) is no clip dataset"):
        ClipDataset.open("s3://media/nowhere")
    with pytest.raises(UserError, match="cannot be opened"):
        ClipDataset.open("nosuch://media/nowhere")


@pytest.fixture(scope="module")
def remote(bucket, tmp_path_factory):
    folder = write_dataset(tmp_path_factory.mktemp("feed") / "clips", 23)
    upload(bucket, folder, "feed")
    return ClipDataset.open("s3://media/feed")


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("stop", [0, 3, 5])
def test_every_stop_and_change_of_workers_gives_each_clip_once_from_a_bucket(
    remote, stop, before, after
):
    seen = []
    for world_size, first, count in ((before, 0, stop), (after, stop, 8 - stop)):
        for rank in range(world_size):
            feed = Feed(remote, **FEED | {"rank": rank, "world_size": world_size}, batch_size=6)
            for batch in islice(feed.batches(first), count):
                seen += zip(batch.epochs, batch.clip_ids, strict=True)
            feed.close()
    assert len(seen) == 48
    for epoch in (0, 1):
        there = sorted(clip for number, clip in seen if number == epoch)
        assert there == sorted(remote.index.clip_id.tolist())

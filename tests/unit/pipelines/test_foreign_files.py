"""Files and keys that other programs and people leave where results and media lie."""

import json
import logging
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from pipelines import leases
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.shards import shard_names
from pipelines.errors import UserError
from pipelines.files import locked
from pipelines.filesystems import _s3, list_files
from pipelines.ingest.state import read_state
from pipelines.sources.listing import list_sources
from pipelines.storage import path_of
from tests.helpers.bucket import BUCKET, serving
from tests.helpers.clip_datasets import write_dataset

CLAIM = asdict(leases.Claim.own(3)) | {"machine": "another machine"}
LISTING = (
    "<?xml version='1.0'?><ListBucketResult><IsTruncated>false</IsTruncated>"
    "<Contents><Key>in/a.mp4</Key><Size>1</Size>"
    "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
    "<CommonPrefixes><Prefix>in//</Prefix></CommonPrefixes></ListBucketResult>"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_hidden_files_are_no_shards(server, tmp_path, where):
    folder = path_of(f"s3://{BUCKET}/clips" if where == "bucket" else tmp_path / "clips")
    write_dataset(folder, 6)
    names = shard_names(folder / "clips")
    for name in (".DS_Store", "clips/.DS_Store", "clips/._000000.parquet", "clips/a/._b.parquet"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"of a Mac")
    (folder / "index.arrow").unlink(missing_ok=True)
    assert len(ClipDataset.open(folder).index) == 6
    assert shard_names(folder / "clips") == names


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_a_folder_in_which_a_check_was_killed_is_empty(server, tmp_path, where):
    folder = path_of(f"s3://{BUCKET}/new" if where == "bucket" else tmp_path / "new")
    folder.mkdir(exist_ok=True)
    (folder / ".0123456789ab.tmp").write_bytes(b"may be removed")
    assert read_state(folder, "be empty") is None
    (folder / "notes.txt").write_bytes(b"of somebody")
    with pytest.raises(UserError, match=r"must be empty, but holds notes\.txt"):
        read_state(folder, "be empty")


@pytest.mark.parametrize(
    "claim",
    [b"", b"\xff", b"[]", b"null", json.dumps(CLAIM | {"number": "9"}).encode()]
    + [json.dumps(CLAIM | {name: None}).encode() for name in ("number", "pid", "is_held")],
)
def test_a_claim_that_is_garbage_is_waited_for_and_removed(server, monkeypatch, claim):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(leases, "_POLL_SECONDS", 0.1)
    folder = path_of(f"s3://{BUCKET}/garbage")
    (folder / "lock/abc.json").write_bytes(claim)
    with locked(folder / "lock", "run"):
        pass
    assert server.names("garbage/lock") == ["clock"]


class Store(BaseHTTPRequestHandler):
    """Lists a key below two slashes."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        is_folder = parse_qs(urlsplit(self.path).query).get("prefix") == ["in/"]
        text = LISTING if is_folder else "<ListBucketResult></ListBucketResult>"
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def test_keys_that_no_client_lists_are_told(monkeypatch, caplog):
    store = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=store.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    _s3.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [entry.uri for entry in list_files("s3://bucket/in")] == ["s3://bucket/in/a.mp4"]
    assert "(s3://bucket/in//): keys with // are left out" in caplog.text
    store.shutdown()
    store.server_close()


@pytest.mark.parametrize("uri", ["s3://me:secret@bucket/a.mp4", "https://me:secret@host/a.mp4"])
def test_a_list_with_passwords_is_refused_without_showing_them(tmp_path, uri):
    (tmp_path / "list.csv").write_text(f"path\n{uri}\n")
    with pytest.raises(UserError, match=r"row 1: \(\w+://\*\*\*\) must not hold") as error:
        list_sources(str(tmp_path / "list.csv"), "auto")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("name", ["none", "none.csv", "none/"])
def test_media_that_are_not_in_the_bucket_are_said_not_to_be_there(server, name):
    with pytest.raises(UserError, match=rf"input \(s3://{BUCKET}/{name}\) does not exist"):
        list_sources(f"s3://{BUCKET}/{name}", "auto")

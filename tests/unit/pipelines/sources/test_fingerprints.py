import hashlib
import os

import pytest

from pipelines.config.base import LimitsSettings
from pipelines.sources import fingerprints
from pipelines.sources.fingerprints import fingerprint_sources
from pipelines.sources.listing import list_sources

pytestmark = pytest.mark.ray


class KilledError(Exception):
    pass


def test_what_was_hashed_before_a_kill_is_not_read_again(local_ray, tmp_path, monkeypatch):
    media, output = tmp_path / "media", tmp_path / "clips"
    media.mkdir()
    (output / ".ingest").mkdir(parents=True)
    for number in range(200):
        (media / f"{number:03}.mp4").write_bytes(os.urandom(100))
    listed = list_sources(str(media), "none")
    monkeypatch.setattr(fingerprints, "CACHE_SECONDS", 0.0)

    def die_half_way(_done, _all, note):
        if note.startswith("read 150 of"):
            raise KilledError

    with pytest.raises(KilledError):
        fingerprint_sources(listed, output, LimitsSettings(), die_half_way)
    notes = []
    found = fingerprint_sources(
        listed, output, LimitsSettings(), lambda *what: notes.append(what[2])
    )
    assert notes[-1] in ("read 51 of 51 files", "read 50 of 50 files")
    assert len({fingerprint.source_hash for fingerprint in found}) == 200


@pytest.mark.parametrize("small_bytes", [0, 10_000], ids=["workers", "driver"])
def test_workers_and_the_driver_hash_alike(local_ray, tmp_path, monkeypatch, small_bytes):
    monkeypatch.setattr(fingerprints, "SMALL_BYTES", small_bytes)
    (tmp_path / "media").mkdir()
    (tmp_path / "out/.ingest").mkdir(parents=True)
    content = {"a.mp4": b"film", "it's \xff.mp4": b"another", "same.mp4": b"film", "none.mp4": b""}
    for name, found in content.items():
        (tmp_path / "media" / name).write_bytes(found)
    (tmp_path / "media/gone.mp4").symlink_to("nowhere")
    listed = list_sources(str(tmp_path / "media"), "none")
    found = fingerprint_sources(listed, tmp_path / "out", LimitsSettings(), lambda *_: None)
    by_name = {
        os.path.basename(source.path): (one.source_hash, one.reason, one.byte_size)
        for source, one in zip(listed.sources, found, strict=True)
    }
    film, another = (hashlib.sha256(one).hexdigest() for one in (b"film", b"another"))
    assert by_name == {
        "a.mp4": (film, None, 4),
        "it's \xff.mp4": (another, None, 7),
        "same.mp4": (film, None, 4),
        "none.mp4": (None, "empty_file", 0),
        "gone.mp4": (None, "unreadable", None),
    }

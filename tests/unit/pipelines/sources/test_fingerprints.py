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

"""A worker embeds with the code of the version that it loads, not with the code that it runs."""

from functools import partial

import mlflow
import numpy as np
import pyarrow.parquet as pq

from pipelines.config.base import DecoderSettings, JobConfig, LimitsSettings, TrackingSettings
from pipelines.config.promote import PromoteSettings
from pipelines.embed.worker import UnitEmbedder
from pipelines.ingest.unit import Unit, UnitSource
from pipelines.registry import versions
from pipelines.registry.package import stage
from pipelines.registry.promote import promote
from pipelines.registry.uri import resolve_model
from pipelines.tracking.runs import open_run
from tests.helpers.encoders import write_checkpoint, write_media
from tests.helpers.media import write_growing
from tests.helpers.registered_code import copy_code
from tests.helpers.timed_scenes import write_scene


def with_scrambled_sound(path):
    """Scrambles the packets of the second stream of a transport stream."""
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), 188):
        if (data[at + 1] & 0x1F, data[at + 2]) == (1, 1):
            data[at + 3] |= 0x80
            data[at + 4 : at + 188] = bytes(byte ^ 0x5A for byte in data[at + 4 : at + 188])
    path.write_bytes(data)
    return path


def source_of(path, start=None, end=None):
    size = path.stat().st_size
    named = {"start_seconds": start, "end_seconds": end}
    return UnitSource(str(path), str(path), path.name, size, None, None, None, **named)


def test_each_version_embeds_with_its_own_code(tmp_path, monkeypatch):
    """A whole film, one that cannot be read, a stretch of one, and one that fails half-way."""
    tracking = TrackingSettings(uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = open_run(JobConfig(tracking=tracking), "promote", "test")
    checkpoint = write_checkpoint(tmp_path / "run")
    promote(checkpoint, None, PromoteSettings(), run)
    code = copy_code(tmp_path / "checkout", factor=2)
    monkeypatch.setattr(versions, "stage", partial(stage, packages=code))
    promote(checkpoint, None, PromoteSettings(), run)

    film = write_media(tmp_path / "film.mkv", seconds=3.0)
    locked = with_scrambled_sound(write_scene(tmp_path / "locked.ts", 0, 3))
    cut = write_media(tmp_path / "cut.mkv", seconds=3.0, seed=1)
    write_growing(tmp_path / "grows.ts")
    sources = (
        source_of(film),
        source_of(locked),
        source_of(cut, 1.5, 3.0),
        source_of(tmp_path / "grows.ts"),
    )
    limits = LimitsSettings(max_pixels=20_000)
    row = {"name": "unit", "shard": "", "unit": Unit("unit", sources).to_json()}
    embeddings = []
    try:
        workers = [
            UnitEmbedder(
                str(tmp_path / str(number)),
                str(tmp_path),
                run.uri,
                resolve_model(f"models:/xkd-audio/{number}", tracking),
                limits.model_dump(),
                DecoderSettings().model_dump(),
                batch_size=2,
            )
            for number in (1, 2)
        ]
        for number, worker in enumerate(workers, start=1):
            (tmp_path / str(number) / "embeddings").mkdir(parents=True)
            outcomes = [(outcome["clips"], outcome["reason"]) for outcome in worker(row)]
            assert outcomes == [(2, ""), (0, "encrypted"), (1, ""), (0, "too_many_pixels")]
            table = pq.read_table(tmp_path / str(number) / "embeddings" / "unit.parquet")
            assert table["start_seconds"].to_pylist() == [0.0, 1.5, 1.5]
            assert table["stretch_end_seconds"].to_pylist() == [None, None, 3.0]
            embeddings.append(np.stack(table["embedding"].to_numpy()))
    finally:
        mlflow.set_tracking_uri(None)
    assert np.abs(embeddings[0]).max() > 0.1
    np.testing.assert_allclose(embeddings[1], 2 * embeddings[0], rtol=1e-6)

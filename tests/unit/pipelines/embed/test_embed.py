"""Embeddings of media and of stored clips: complete, the model's own, and never done twice."""

import json
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.config.base import JobConfig, LimitsSettings, TrackingSettings
from pipelines.config.embed import EmbedConfig
from pipelines.config.ingest import IngestSettings
from pipelines.config.promote import PromoteSettings
from pipelines.embed.embed import check_embed, embed
from pipelines.errors import UserError
from pipelines.ingest.ingest import ingest
from pipelines.registry.promote import promote
from pipelines.sources.spool import Spool
from pipelines.tracking.runs import open_run
from tests.helpers.encoders import WIDTH, example_scores, write_checkpoint, write_media
from tests.helpers.media import write_growing
from tests.helpers.programs import REPOSITORY

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def tracking(tmp_path_factory, local_ray):
    """A store with two versions of each encoder, and a Ray to work on."""
    folder = tmp_path_factory.mktemp("mlflow")
    config = TrackingSettings(uri=f"sqlite:///{folder / 'mlflow.db'}")
    run = open_run(JobConfig(tracking=config), "promote", "test")
    for seed in (0, 1):
        checkpoint = write_checkpoint(folder / "run", seed=seed)
        promote(checkpoint, example_scores(0.5), PromoteSettings(), run)
    mlflow.set_tracking_uri(config.uri)
    yield config
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Two films, one of them twice, a film without sound, and a file that is no film."""
    folder = tmp_path_factory.mktemp("media")
    write_media(folder / "a" / "long.mkv", seconds=3.0, seed=1)
    write_media(folder / "b" / "short.mkv", seconds=1.25, seed=2)
    shutil.copy(folder / "b" / "short.mkv", folder / "b" / "twice.mkv")
    write_media(folder / "silent.mkv", seconds=1.0, sound=False, seed=3)
    (folder / "broken.mp4").write_bytes(b"no film")
    return folder


@pytest.fixture(scope="module")
def embedded(tracking, media, tmp_path_factory):
    """The media under the first video encoder, as it was configured and what came out."""
    config = config_for(tracking, media, tmp_path_factory.mktemp("embedded") / "out")
    assert check_embed(config) == []
    return config, run(config)


def config_for(tracking, source, output, model="models:/xkd-video@champion"):
    return EmbedConfig(
        model=model,
        input=str(source),
        output=str(output),
        batch_size=2,
        num_workers=1,
        tracking=tracking,
    )


def test_the_python_of_the_readme_runs(embedded):
    config, _ = embedded
    readme = (REPOSITORY / "pipelines/embed/README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    found = {}
    exec(code.replace("/my/embeddings", config.output), found)
    assert found["rows"].column_names == ["source", "start_seconds", "embedding"]
    assert len(found["rows"])


def run(config):
    return embed(config, lambda *_: None)


def rows_of(folder):
    rows = [
        row
        for file in sorted((folder / "embeddings").glob("*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]
    return sorted(rows, key=lambda row: (row["source"], row["start_seconds"]))


def rejects_of(folder):
    return {
        row["source"].rsplit("/", 1)[-1]: row["reason"]
        for file in (folder / "rejects").glob("*.parquet")
        for row in pq.read_table(file).to_pylist()
    }


def test_media_become_embeddings_or_rejects(embedded):
    config, summary = embedded
    assert (summary.sources, summary.accepted, summary.rejected) == (5, 3, 2)
    assert summary.rejects_by_reason == {"duplicate": 1, "not_media": 1}
    assert (summary.clips, summary.new_clips) == (4, 4)
    manifest = json.loads((Path(config.output) / "manifest.json").read_text())
    assert manifest["model"] == "models:/xkd-video/1"
    assert manifest["sources"] == manifest["accepted"] + manifest["rejected"]


def test_embeddings_are_what_the_model_gives_for_the_source(embedded):
    rows = rows_of(Path(embedded[0].output))
    assert [row["start_seconds"] for row in rows] == [0.0, 1.5, 0.0, 0.0]
    assert {row["model"] for row in rows} == {"models:/xkd-video/1"}
    assert {row["model_version"] for row in rows} == {"1"}
    assert {len(row["embedding"]) for row in rows} == {WIDTH}
    check_embeddings(rows, "models:/xkd-video/1")


def check_embeddings(rows, model):
    """The mean over a source's rows is what the model says of the whole source."""
    by_source = {}
    for row in rows:
        by_source.setdefault(row["source"], []).append(row["embedding"])
    expected = mlflow.pyfunc.load_model(model).predict({"path": list(by_source)})
    means = [np.mean(embeddings, axis=0) for embeddings in by_source.values()]
    np.testing.assert_allclose(means, expected, atol=1e-5)


def test_what_is_there_is_not_done_again_and_what_is_missing_is(embedded):
    config, first = embedded
    output = Path(config.output)
    before = rows_of(output)
    assert run(config) == replace(first, new_clips=0)
    shard = max((output / "embeddings").glob("*.parquet"), key=lambda file: file.stat().st_size)
    num_rows = pq.read_metadata(shard).num_rows
    shard.unlink()  # as if killed before it was renamed
    assert run(config) == replace(first, new_clips=num_rows)
    assert rows_of(output) == before


def test_copies_that_no_source_needs_are_removed(embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Spool(max_bytes=100).keeping("http://127.0.0.1/a.mp4", 4) as copy:
        copy.write(b"film")
        copy.keep("hash", 4)
    assert list(tmp_path.rglob("*.kept"))
    run(embedded[0])
    assert not list(tmp_path.rglob("*.kept"))


def test_an_output_of_another_model_is_refused(embedded):
    other = embedded[0].model_copy(update={"model": "models:/xkd-video/2"})
    message = r"model is models:/xkd-video/1 there and models:/xkd-video/2 here"
    with pytest.raises(UserError, match=message):
        run(other)
    assert len(check_embed(other)) == 1


def test_stored_clips_give_the_same_as_their_media(tracking, media, tmp_path):
    settings = IngestSettings(
        segment_seconds=1.5, min_segment_seconds=0.5, short_side=24, sample_rate=4_000
    )
    ingest(str(media), str(tmp_path / "clips"), settings, on_progress=lambda *_: None)
    model = "models:/xkd-audio/2"
    summary = run(config_for(tracking, tmp_path / "clips", tmp_path / "out", model))
    assert (summary.sources, summary.accepted, summary.clips) == (3, 2, 3)
    assert rejects_of(tmp_path / "out") == {"silent.mkv": "no_sound"}
    check_embeddings(rows_of(tmp_path / "out"), model)


# `test_worker.py` embeds a stretch and a source that fails, `ingest/test_plan.py` follows a list.
@pytest.mark.slow
def test_only_the_stretch_that_a_list_names_is_embedded_and_nothing_of_what_fails_half_way(
    tracking, media, tmp_path
):
    table = tmp_path / "list.csv"
    write_growing(tmp_path / "grows.ts")
    limits = LimitsSettings(max_pixels=20_000)
    config = config_for(tracking, table, tmp_path / "out").model_copy(update={"limits": limits})
    table.write_text(
        f"path,start,end\n{media}/a/long.mkv,1.5,3\n{media}/b/short.mkv,7,7.1\ngrows.ts,,\n"
    )
    summary = run(config)
    assert (summary.accepted, summary.rejected, summary.clips) == (1, 2, 1)
    assert [row["start_seconds"] for row in rows_of(tmp_path / "out")] == [1.5]
    assert rejects_of(tmp_path / "out") == {"short.mkv": "too_short", "grows.ts": "too_many_pixels"}
    table.write_text(f"path,start,end\n{media}/a/long.mkv,0,1.5\n{media}/b/short.mkv,,\n")
    run(config)
    found = [
        (row["start_seconds"], row["stretch_end_seconds"]) for row in rows_of(tmp_path / "out")
    ]
    assert found == [(0.0, 1.5), (0.0, None)]


def test_all_mistakes_are_found_before_any_work(tracking, tmp_path):
    config = config_for(tracking, tmp_path / "absent", tmp_path / "out", "models:/nobody/1")
    mistakes = check_embed(config)
    assert "no model nobody is registered" in mistakes[0]
    assert "absent) does not exist" in mistakes[1]


def test_a_model_whose_file_was_changed_is_refused_by_name(tracking, media, tmp_path):
    config = config_for(tracking, media, tmp_path / "out", model="models:/xkd-audio/1")
    client = mlflow.MlflowClient(tracking.uri)
    weights = Path(client.get_model_version_download_uri("xkd-audio", "1"), "model.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(UserError, match=r"xkd-audio/1\) is refused: its file model\.safetens"):
            run(config)
    finally:
        weights.write_bytes(content)
    assert not (tmp_path / "out").exists()

"""The main job as a user runs it: what it prints, what it leaves, and that it goes on."""

import json
import re
from typing import Any

import mlflow
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

from pipelines.models.checkpoints import find_checkpoint, read_info
from tests.helpers.programs import REPOSITORY, TINY, TinyRun, run_here, run_program
from tests.unit.test_layout import READMES

pytestmark = pytest.mark.ray

# Examples marked `py` are of a folder that `pull` writes: `test_encoder_ways.py` runs them.
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_it_says_what_came_out(tiny_run: TinyRun):
    printed = tiny_run.done.out
    assert "26 sources = 24 accepted + 2 rejected (2 not_media)" in printed
    for stage in ("make", "ingest", "pretrain", "evaluate", "register", "report"):
        assert re.search(rf"^{stage} ", printed, re.MULTILINE), stage
    assert re.search(r"^  held-out score +trained .* untrained +difference", printed, re.MULTILINE)
    assert "xkd-audio version 1: gets the alias champion" in printed
    assert str(tiny_run.folder / "report.html") in printed
    assert f"ui --backend-store-uri {tiny_run.tracking_uri}" in printed
    assert "Traceback" not in tiny_run.done.err


def test_clip_dataset_opens_with_plain_pyarrow(tiny_run: TinyRun):
    manifest = json.loads((tiny_run.folder / "clips" / "manifest.json").read_text())
    assert manifest["sources"] == manifest["accepted"] + manifest["rejected"] == 26
    table = pq.read_table(tiny_run.folder / "clips" / "clips", partitioning=None)
    assert len(table) == manifest["clips"] == 24
    for row in table.slice(0, 3).to_pylist():
        assert len(row["frames"]) == row["num_frames"] * row["height"] * row["width"] * 3
        assert len(row["waveform"]) == 2 * row["num_samples"]
        assert row["num_samples"] == round(row["duration_seconds"] * 16_000)


def test_every_term_of_the_loss_is_in_mlflow(tiny_run: TinyRun):
    client = MlflowClient(tiny_run.tracking_uri)
    experiment = client.get_experiment_by_name("xkd")
    runs = {run.data.tags["xkd.job"]: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop("run")
    assert set(runs) == {"ingest", "pretrain", "evaluate", "promote"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *runs.values())} == {"FINISHED"}
    measured = set(runs["pretrain"].data.metrics)
    assert {
        "loss/total",
        "loss/reconstruction/video",
        "loss/alignment/student",
        "loss/distillation/video_to_audio",
        "schedule/learning_rate",
        "schedule/video_momentum",
        "health/audio/effective_rank",
        "time/data_wait_share",
        "time/clips_per_second",
    } <= measured
    assert "report.html" in [item.path for item in client.list_artifacts(parent.info.run_id)]


def test_report_needs_no_network(tiny_run: TinyRun):
    page = (tiny_run.folder / "report.html").read_text()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
    for section in ("data", "losses", "health", "scores", "reconstructions", "attention", "maps"):
        assert f'id="{section}"' in page, section


def test_registered_model_embeds_a_file(tiny_run: TinyRun):
    mlflow.set_tracking_uri(tiny_run.tracking_uri)
    encoder = mlflow.pyfunc.load_model("models:/xkd-audio@champion")
    file = sorted((tiny_run.folder / "videos" / "test").glob("*/*"))[0]
    assert encoder.predict([{"path": str(file)}]).shape == (1, 48)


def test_python_of_the_readmes_runs_as_it_stands(tiny_run: TinyRun):
    """Only addresses and names of files, which are the reader's own, are replaced."""
    media = sorted((tiny_run.folder / "videos" / "test").glob("*/*"))[0]
    (shard, *_) = sorted((tiny_run.folder / "clips" / "clips").rglob("*.parquet"))
    own = {
        "sqlite:////home/me/xkd/mlflow.db": tiny_run.tracking_uri,
        "/some/video.mp4": str(media),
        "runs/smoke/clips/clips/SHARD.parquet": str(shard),
    }
    results: dict[str, dict[str, Any]] = {}
    for readme in READMES:
        if readme.parent.name == "embed":  # in the tests of that package, which embed something
            continue
        for code in PYTHON.findall(readme.read_text(encoding="utf-8")):
            for theirs, ours in own.items():
                code = code.replace(theirs, ours)
            exec(code, results.setdefault(readme.parent.name, {}))
    top, registry, dataset = (results.pop(n) for n in (REPOSITORY.name, "registry", "dataset"))
    assert not results, "say here what these examples give"
    for example in (top, registry):
        assert example["embeddings"].shape == (1, 48)
    assert dataset["frames"].shape[3] == 3
    assert len(dataset["waveform"]) == dataset["row"]["num_samples"]


def test_same_command_again_does_nothing_twice(tiny_run: TinyRun):
    before = read_info(find_checkpoint(str(tiny_run.folder / "pretrain" / "tiny")))
    again = run_program("run", "conf/run/smoke.yaml", *TINY, home=tiny_run.home)
    assert again.code == 0, again.err
    assert ", 0 new;" in again.out
    assert "all of them done before" in again.out
    after = read_info(find_checkpoint(str(tiny_run.folder / "pretrain" / "tiny")))
    assert after == before
    client = MlflowClient(tiny_run.tracking_uri)
    assert len(client.search_model_versions("name='xkd-video'")) == 1
    runs = client.search_runs(
        [client.get_experiment_by_name("xkd").experiment_id], "tags.`xkd.job` = 'pretrain'"
    )
    assert [run.info.run_id for run in runs] == [before.run_id]


def test_run_of_that_name_with_other_settings_is_refused(tiny_run: TinyRun):
    other = run_here(
        "run", "conf/run/smoke.yaml", *TINY, "pretrain.seed=1", "--dry-run", home=tiny_run.home
    )
    assert other.code == 2
    assert "seed is 0 there and 1 here" in other.err
    assert "Traceback" not in other.err

"""The main job, a sweep and embedding with everything in a bucket, as a user runs them.

XKD_HOME=s3://bucket/prefix MLFLOW_TRACKING_URI=... xkd run ...
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pipelines.storage import path_of
from tests.helpers.bucket import BUCKET, serving, wait_until
from tests.helpers.programs import REPOSITORY, TINY, run_program

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]
HOME = f"s3://{BUCKET}/home of xkd"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="module")
def finished(server, tracking):
    """The main job, killed twice on its way and then finished."""
    command = [sys.executable, "-m", "ray_jobs.run", "conf/run/smoke.yaml", *TINY]
    environment = os.environ | {"XKD_HOME": HOME, "MLFLOW_TRACKING_URI": tracking}
    for seconds in (15.0, 40.0):
        driver = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL
        )
        time.sleep(seconds)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    done = run(tracking, "run", "conf/run/smoke.yaml", *TINY)
    assert done.code == 0, done.out + done.err
    return done


def run(tracking, job, *arguments):
    return run_program(job, *arguments, home=HOME, MLFLOW_TRACKING_URI=tracking, timeout=600)


def test_the_main_job_is_as_on_a_disk(server, tracking, finished, tiny_run):
    folder = path_of(f"{HOME}/runs/tiny")
    there, here = (
        json.loads((where / "clips/manifest.json").read_text())
        for where in (folder, tiny_run.folder)
    )
    for name in ("dataset_id", "clips", "accepted", "rejects_by_reason"):
        assert there[name] == here[name]
    there, here = (
        json.loads((where / "evaluate/scores.json").read_text())
        for where in (folder, tiny_run.folder)
    )
    assert there["modalities"] == here["modalities"]
    assert (folder / "report.html").size() > 100_000
    assert "report: s3://" in finished.out
    assert not [name for name in server.names("home of xkd") if ".tmp" in name or "/run-" in name]
    again = run(tracking, "run", "conf/run/smoke.yaml", *TINY)
    assert again.code == 0, again.out + again.err
    assert "all of them done before" in again.out


def test_embeddings_of_a_registered_model_go_to_the_bucket(server, tracking, finished):
    arguments = ("conf/embed/smoke.yaml", "model=models:/xkd-video@champion")
    done = run(tracking, "embed", *arguments, "input=runs/tiny/clips", "output=embeddings")
    assert done.code == 0, done.out + done.err
    manifest = json.loads(path_of(f"{HOME}/embeddings/manifest.json").read_text())
    assert manifest["clips"] > 0
    done = run(tracking, "embed", *arguments, "input=runs/tiny/videos", "output=of-media")
    assert done.code == 0, done.out + done.err


def test_an_embedding_that_is_killed_gives_the_same_files(server, tracking, finished):
    """Killed as soon as the first shard is there, while the next ones are uploaded."""
    arguments = ("conf/embed/smoke.yaml", "model=models:/xkd-video@champion")
    media = "input=runs/tiny/videos"
    done = run(tracking, "embed", *arguments, media, "output=whole")
    assert done.code == 0, done.out + done.err
    command = [sys.executable, "-m", "ray_jobs.embed", *arguments, media, "output=killed"]
    server.slow(True)
    driver = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"XKD_HOME": HOME, "MLFLOW_TRACKING_URI": tracking},
        stdout=subprocess.DEVNULL,
    )
    folder = "home of xkd/killed"
    wait_until(lambda: any(name.endswith(".parquet") for name in server.names(folder)), 300)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    server.slow(False)
    assert "manifest.json" not in server.names(folder)
    done = run(tracking, "embed", *arguments, media, "output=killed")
    assert done.code == 0, done.out + done.err
    whole = [name for name in server.names("home of xkd/whole") if "lock" not in name]
    assert [name for name in server.names(folder) if "lock" not in name] == whole
    there, here = (
        json.loads(path_of(f"{HOME}/{name}/manifest.json").read_text())
        for name in ("whole", "killed")
    )
    assert there["clips"] == here["clips"] > 0


def test_without_a_place_for_mlflow_one_line_says_what_to_set(server, finished):
    done = run_program("run", "conf/run/smoke.yaml", *TINY, home=HOME)
    assert done.code == 2
    assert "MLFLOW_TRACKING_URI=http://HOST:5000" in done.err
    assert "Traceback" not in done.err

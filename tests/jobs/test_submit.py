"""`xkd submit` on a cluster that asks for a token: checks, log, exit code, lineage."""

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.tracking.code_version import code_version
from tests.helpers.training import unused_port

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head with a dashboard; gives the variables that reach it."""
    port, dashboard = unused_port(), unused_port()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PATH": f"{RAY.parent}:{environment['PATH']}",
        # Code of the checkout must not hide that of the upload.
        "PYTHONPATH": "",
    }
    settings = {
        "port": port,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": unused_port(),
        "num-cpus": 2,
        "object-store-memory": 100_000_000,
    }
    head = subprocess.Popen(
        [RAY, "start", "--head", "--block", *(f"--{key}={v}" for key, v in settings.items())],
        env=environment,
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{dashboard}"
    yield environment | {"RAY_API_SERVER_ADDRESS": address, "PYTHONPATH": str(REPOSITORY)}
    os.killpg(head.pid, signal.SIGTERM)
    head.wait(60)


def submit(*arguments, environment, timeout=300):
    return subprocess.run(
        [sys.executable, "-m", "ray_jobs.cli.main", "submit", *arguments],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def ready(cluster):
    until = time.monotonic() + 300
    while submit("list", environment=cluster).returncode:
        assert time.monotonic() < until
        time.sleep(1)
    return cluster


def test_a_wrong_token_is_told(ready):
    for name, value in (("RAY_AUTH_TOKEN", "wrong" * 8), ("RAY_AUTH_MODE", "disabled")):
        done = submit("list", environment=ready | {name: value})
        assert done.returncode == 2, done.stderr
        assert "asks for a token, or refuses this one" in done.stderr


def test_what_the_cluster_does_not_see_is_told_before_the_upload(ready, tmp_path):
    done = submit(
        *("--home", str(tmp_path / "home"), "pretrain", "smoke", "num_workers=9"),
        "batch_size=18",
        environment=ready,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"dataset ({tmp_path}/home/runs/smoke/clips) does not exist on the" in done.stderr
    assert "num_workers (9) needs 9 x 1 CPU" in done.stderr
    assert "package: " in done.stdout
    assert "submitted" not in done.stdout


def test_a_job_runs_with_its_log_its_exit_code_and_its_lineage(ready, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    size = ("synthetic.num_clips=16", "sources_per_shard=8", "num_workers=1")
    done = submit("--home", str(home), "ingest", "smoke", *size, environment=ready)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ingest " in done.stdout  # its progress
    identity = next(
        line.split()[1] for line in done.stdout.splitlines() if line.startswith("submitted ")
    )
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments):
        assert run.data.tags["xkd.code_version"] == code_version()
        assert run.data.tags["xkd.ray.submission_id"] == identity
        assert run.data.tags["xkd.ray.job_id"]
    again = submit("logs", identity, environment=ready)
    assert again.returncode == 0
    assert again.stdout in done.stdout
    listed = submit("list", environment=ready)
    assert identity in listed.stdout
    assert "SUCCEEDED" in listed.stdout
    assert "FAILED" not in listed.stdout  # what looks at the cluster first is no job of the user
    wrong = submit(
        *("--home", str(home), "ingest", "smoke", "max_reject_fraction=0.5", *size),
        f"output={home}/mlflow.db",
        environment=ready,
    )
    assert wrong.returncode == 2
    unknown = submit("stop", "nothing", environment=ready)
    assert unknown.returncode == 2
    assert "no job 'nothing' at http://127.0.0.1" in unknown.stderr

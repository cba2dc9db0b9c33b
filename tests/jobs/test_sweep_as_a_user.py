"""A sweep as a user runs it: from a folder of its own, with relative paths."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.sweep.trial_files import Trial, read_trials
from tests.helpers.programs import REPOSITORY, Done
from tests.jobs.test_sweep_survives import PRETRAIN, check_metrics, child_runs, write_sweep

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def run_sweep(here: Path, epochs: list[float]) -> Done:
    """Clips that a tiny network finds alike, which three steps tell and two do not."""
    file = write_sweep(
        here,
        dataset="clips",
        output="sweeps",
        pretrain={**PRETRAIN, "optimizer": {"warmup_epochs": 0}},
        space={"epochs": {"choice": epochs}},
        scoring={"num_rungs": 2, "neighbors": 3},
        search={"kind": "grid"},
        stopping={"kind": "none"},
    )
    outside = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "XKD_HOME")
    done = subprocess.run(
        [sys.executable, "-m", "ray_jobs.sweep", file.name],
        cwd=here,
        env={name: value for name, value in os.environ.items() if name not in outside}
        | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def trials_of(here: Path) -> list[Trial]:
    return read_trials(here / "sweeps" / "tiny")


def check_trials(here: Path, names: list[str]) -> None:
    """Each trial has logged where the sweep did."""
    uri = f"sqlite:///{here}/mlflow.db"
    runs = {run.info.run_name: run.info.run_id for run in child_runs(uri)}
    trials = trials_of(here)
    assert sorted(runs) == [trial.name for trial in trials] == names
    for trial in trials:
        check_metrics(MlflowClient(uri), runs[trial.name], trial, interrupted=False)


def test_a_trial_is_scored_logged_and_told(tmp_path: Path):
    """One trial: a training costs a dozen processes."""
    done = run_sweep(tmp_path, [0.4])
    check_trials(tmp_path, ["trial-000"])
    (trial,) = trials_of(tmp_path)
    assert (trial.status, len(trial.rungs)) == ("completed", 3)
    assert "best: trial-000" in done.out
    assert "Configuration for experiment" not in done.out  # Tune's own table
    assert (tmp_path / "sweeps/tiny/best.yaml").exists()
    assert (tmp_path / "sweeps/tiny/report.html").exists()


# `test_sweep.py` says what a collapse ends, and Tune's part of it.
@pytest.mark.slow
def test_a_collapse_ends_its_trial_alone(tmp_path: Path):
    here, done = tmp_path, run_sweep(tmp_path, [0.4, 3])
    check_trials(here, ["trial-000", "trial-001"])
    short, collapsed = trials_of(here)
    assert (short.status, len(short.rungs)) == ("completed", 3)
    assert (collapsed.status, collapsed.rungs[-1].rung) == ("collapsed", 1)
    assert collapsed.reason.startswith("at rung 1: video targets hardly differ between clips")
    assert "best: trial-000" in done.out
    assert "Configuration for experiment" not in done.out  # Tune's own table
    (run,) = [
        run
        for run in child_runs(f"sqlite:///{here}/mlflow.db")
        if run.info.run_name == collapsed.name
    ]
    assert (run.info.status, run.data.tags["xkd.sweep.status"]) == ("KILLED", "collapsed")

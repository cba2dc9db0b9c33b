"""Sweeps as a user runs them: killed in the middle, and with trials that log side by side."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow.tracking import MlflowClient

from pipelines.models.checkpoints import TRAINING_FILE, newest_checkpoint, read_info
from pipelines.sweep.trial_files import ENDED_FILE, TRIALS_FOLDER, Trial, read_trials
from pipelines.tracking.run_folder import RUN_FILE
from tests.helpers.clip_datasets import FRAME_RATE, SAMPLE_RATE, write_dataset
from tests.helpers.programs import REPOSITORY, run_program
from tests.helpers.training import serving_mlflow, unused_port

PRETRAIN: dict[str, Any] = {
    "epochs": 6,
    "batch_size": 4,
    "log_every": 1,
    "cpus_per_worker": 1,
    "model": {
        "video": {
            "num_frames": 4,
            "frame_rate": FRAME_RATE,
            "size": 32,
            "local_size": 16,
            "local_num_frames": 4,
        },
        "audio": {
            "num_samples": 800,
            "sample_rate": SAMPLE_RATE,
            "local_num_samples": 400,
            "n_fft": 64,
            "hop_length": 53,
            "patch_frames": 8,
        },
        "encoder": {"width": 24, "depth": 1, "num_heads": 2},
        "decoder": {"width": 16, "depth": 1, "num_heads": 2},
        "head": {"hidden_width": 16, "bottleneck_width": 8, "output_width": 16},
    },
    "optimizer": {"warmup_epochs": 1},
}
NUM_TRIALS = 6
NUM_STEPS = 27
"""Six epochs of 18 clips in batches of 4."""


def write_sweep(home: Path, **changes: Any) -> Path:
    """A sweep of tiny trials over made clips, as a configuration file."""
    clips = home / "clips"
    write_dataset(clips, 24, split=lambda i: "test" if i % 4 == 0 else "train")
    values = {
        "name": "tiny",
        "dataset": str(clips),
        "output": str(home),
        "pretrain": PRETRAIN,
        "space": {
            "objective.alignment_weight": {"loguniform": [0.01, 1.0]},
            "objective.refinement": {"choice": ["mean", "none"]},
        },
        "search": {"kind": "tpe", "num_trials": NUM_TRIALS, "startup_trials": 3},
        "stopping": {"kind": "asha", "reduction_factor": 2, "collapsed": False},
        "scoring": {"num_rungs": 3, "neighbors": 3},
        "max_concurrent_trials": 2,
        "ray": {"num_cpus": 2},
    }
    file = home / "sweep.yaml"
    file.write_text(yaml.safe_dump(values | changes))
    return file


def start(file: Path, home: Path) -> subprocess.Popen[str]:
    """The sweep as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.sweep", str(file)],
        cwd=REPOSITORY,
        env={**os.environ, "XKD_HOME": str(home)},
        stdout=(home / "out").open("w"),
        stderr=(home / "err").open("w"),
        text=True,
    )


def wait_for(condition: Any, driver: subprocess.Popen[str], home: Path, seconds: float) -> None:
    """Waits while the driver lives."""
    until = time.monotonic() + seconds
    while not condition():
        said = (home / "err").read_text()[-2000:]
        assert driver.poll() is None, f"the sweep ended before it could be killed: {said}"
        assert time.monotonic() < until, said
        time.sleep(0.2)


def ended(trials: list[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.status != "running"]


def half_way(trials: list[Trial]) -> bool:
    """Some trials have ended and one is between two of its rungs."""
    running = [trial for trial in trials if trial.status == "running"]
    return bool(ended(trials)) and any(len(trial.rungs) > 1 for trial in running)


def kill_driver(driver: subprocess.Popen[str]) -> None:
    """SIGKILL; its Ray must not outlive it."""
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    # Ray's agents look after their raylet now and then, and later the more there is to do.
    _, alive = psutil.wait_procs(family, timeout=240)
    assert not alive


def kill_one_trial(driver: subprocess.Popen[str]) -> None:
    """SIGKILL to the actor in which Tune runs a trial."""
    trials = [
        process
        for process in psutil.Process(driver.pid).children(recursive=True)
        if "ImplicitFunc" in " ".join(process.cmdline()) or "run_trial" in process.name()
    ]
    os.kill(trials[0].pid, signal.SIGKILL)


def child_runs(uri: str) -> list[Any]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("xkd")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags["xkd.job"] == "sweep"]
    assert parent.info.status == "FINISHED"
    return [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


def check_runs(uri: str, trials: list[Trial], interrupted: set[str]) -> None:
    """One MLflow run for each trial, closed as it ended, and no metric missing."""
    runs = {run.info.run_name: run for run in child_runs(uri)}
    for trial in trials:
        run = runs[trial.name]
        assert run.info.status == ("FINISHED" if trial.status == "completed" else "KILLED")
        assert run.data.tags["xkd.sweep.status"] == trial.status
        check_metrics(MlflowClient(uri), run.info.run_id, trial, trial.name in interrupted)


def check_metrics(client: MlflowClient, run_id: str, trial: Trial, interrupted: bool) -> None:
    steps = [metric.step for metric in client.get_metric_history(run_id, "loss/total")]
    last = trial.rungs[-1].step
    assert set(range(last)) <= set(steps)
    assert interrupted or len(steps) == len(set(steps)), "a step was trained twice"
    for side in ("video", "audio"):
        history = client.get_metric_history(run_id, f"score/{side}/knn")
        logged = {metric.step: metric.value for metric in history}
        assert logged == {rung.step: rung.scores[f"{side}/knn"] for rung in trial.rungs}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_a_killed_sweep_goes_on_with_no_trial_lost_or_run_twice(tmp_path: Path):
    file, folder = write_sweep(tmp_path), tmp_path / "tiny"
    driver = start(file, tmp_path)
    wait_for(lambda: half_way(read_trials(folder)), driver, tmp_path, 400)
    kill_driver(driver)
    before = read_trials(folder)
    cut_off = {trial.name for trial in before if trial.status == "running"}
    ends = {
        trial.name: (folder / TRIALS_FOLDER / trial.name / ENDED_FILE).stat().st_mtime_ns
        for trial in ended(before)
    }

    driver = start(file, tmp_path)
    wait_for(lambda: len(ended(read_trials(folder))) > len(ends), driver, tmp_path, 400)
    wait_for(
        lambda: any(t.rungs for t in read_trials(folder) if t.status == "running"),
        driver,
        tmp_path,
        400,
    )
    cut_off |= {trial.name for trial in read_trials(folder) if trial.status == "running"}
    kill_one_trial(driver)
    assert driver.wait(600) == 0, (tmp_path / "err").read_text()

    trials = read_trials(folder)
    assert [trial.number for trial in trials] == list(range(NUM_TRIALS))
    assert {trial.status for trial in trials} <= {"completed", "stopped"}
    for old in before:
        new = trials[old.number]
        assert new.values == old.values
        assert new.rungs[: len(old.rungs)] == old.rungs
    for name, written in ends.items():
        assert (folder / TRIALS_FOLDER / name / ENDED_FILE).stat().st_mtime_ns == written
    for trial in trials:
        if trial.status == "completed":
            assert [rung.step for rung in trial.rungs] == [0, 9, 18, NUM_STEPS]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert len(child_runs(uri)) == NUM_TRIALS
    check_runs(uri, trials, cut_off)
    page = (folder / "report.html").read_text()
    assert all(trial.name in page for trial in trials)


def run_id_of(trial: Path) -> str:
    return str(json.loads((trial / RUN_FILE).read_text())["run_id"])


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_a_failed_trial_goes_on_if_asked_to(tmp_path: Path):
    settings = {"epochs": 24, "max_failures": 0, "checkpoints_kept": 9}  # time enough to kill it
    file = write_sweep(
        tmp_path,
        pretrain={**PRETRAIN, **settings},
        search={"kind": "random", "num_trials": 2},
        stopping={"kind": "none", "collapsed": False},
        max_concurrent_trials=1,
    )
    folder, uri = tmp_path / "tiny", f"sqlite:///{tmp_path}/mlflow.db"
    first, second = (folder / TRIALS_FOLDER / name for name in ("trial-000", "trial-001"))
    driver = start(file, tmp_path)
    wait_for(lambda: newest_checkpoint(first) is not None, driver, tmp_path, 400)
    kill_one_trial(driver)
    assert driver.wait(600) == 0, (tmp_path / "err").read_text()
    assert [trial.status for trial in read_trials(folder)] == ["failed", "completed"]
    left, before, runs = newest_checkpoint(first), read_trials(folder), child_runs(uri)
    assert left is not None
    assert read_info(left).next_step < 4 * NUM_STEPS
    saved = (left / TRAINING_FILE).stat().st_mtime_ns
    ended = (second / ENDED_FILE).stat().st_mtime_ns
    run_id = run_id_of(first)
    (failed,) = [run for run in runs if run.info.run_id == run_id]
    assert (failed.info.status, failed.data.tags["xkd.sweep.status"]) == ("FAILED", "failed")

    done = run_program("sweep", str(file), "retry_failed=true", home=tmp_path, timeout=600)
    assert done.code == 0, done.out + done.err
    trials = read_trials(folder)
    assert [trial.status for trial in trials] == ["completed", "completed"]
    assert trials[0].rungs[-1].step == 4 * NUM_STEPS
    assert (trials[0].values, trials[1]) == (before[0].values, before[1])
    assert (left / TRAINING_FILE).stat().st_mtime_ns == saved, "it began anew"
    assert (second / ENDED_FILE).stat().st_mtime_ns == ended
    assert run_id_of(first) == run_id
    assert len(child_runs(uri)) == len(runs) == 2
    check_runs(uri, trials, {"trial-000"})


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_trials_side_by_side_lose_no_metric_and_the_best_is_registered(tmp_path: Path):
    with serving_mlflow(tmp_path / "server", unused_port()) as server:
        file = write_sweep(
            tmp_path,
            tracking={"uri": server.replace("://", "://me:secret@")},
            search={"kind": "random", "num_trials": 4},
            stopping={"kind": "median", "min_trials": 2, "collapsed": False},
            final={"epochs": 8},
        )
        done = run_program("sweep", str(file), home=tmp_path, timeout=1200)
        assert done.code == 0, done.out + done.err
        folder = tmp_path / "tiny"
        trials = read_trials(folder)
        assert len(trials) == 4
        check_runs(server, trials, set())
        client = MlflowClient(server)
        names = {run.info.run_name for run in child_runs(server)}
        reported = [
            file for file in folder.rglob("*") if file.is_file() and b"secret" in file.read_bytes()
        ]
        assert reported == []
        (best,) = (folder / "final" / "pretrain").iterdir()
        assert names == {*(trial.name for trial in trials), best.name, "evaluate", "promote"}
        for side in ("video", "audio"):
            version = client.get_model_version_by_alias(f"xkd-{side}", "champion")
            assert version.tags["xkd.step"] == "36"
        assert "best: trial-00" in done.out
        assert json.loads((folder / "run.json").read_text())["run_id"]
        again = run_program("sweep", str(file), home=tmp_path, timeout=600)
        assert again.code == 0, again.out + again.err
        assert [trial.rungs for trial in read_trials(folder)] == [trial.rungs for trial in trials]

"""The MLflow runs of trials: each ends as its trial did, with all that was measured."""

import json

import pytest
import torch

from pipelines.config.ingest import IngestConfig
from pipelines.models.checkpoints import TrainingInfo, checkpoint_name, save_checkpoint
from pipelines.sweep import runs as sweep_runs
from pipelines.sweep.runs import close_orphaned_runs, close_trial, send_unsent
from pipelines.sweep.trial_files import add_trial, end_trial, read_trial, trial_folder
from pipelines.tracking.run_folder import RUN_FILE
from pipelines.tracking.runs import RunRef, metric_histories, open_run
from pipelines.tracking.tracker import UNSENT_FILE


def opened(home, name, parent=None):
    config = IngestConfig.model_validate(
        {"output": str(home / "clips"), "tracking": {"uri": f"sqlite:///{home}/mlflow.db"}}
    )
    return open_run(config, "test", name, parent=parent)


@pytest.fixture
def whole(tmp_path):
    return opened(tmp_path, "sweep")


def add(home, whole, number, status=None):
    """A trial with its run, ended if there is a status."""
    add_trial(home, number, {"seed": number})
    child = opened(home, f"trial-{number:03d}", whole)
    (trial_folder(home, number) / RUN_FILE).write_text(json.dumps({"run_id": child.run_id}))
    if status:
        end_trial(home, number, status, "why")
    return child


def metric(step):
    return {"key": "loss/total", "value": step / 2, "timestamp": step, "step": step}


def keep(home, number, *steps):
    """As a tracker that could not send."""
    lines = "".join(json.dumps(metric(step)) + "\n" for step in steps)
    (trial_folder(home, number) / UNSENT_FILE).write_text(lines)


def leave_checkpoint(home, number, *steps):
    """As a training that was killed after it."""
    checkpoint = trial_folder(home, number) / checkpoint_name(7)
    info = TrainingInfo(7, 60, 6.0, {}, "made24", "", "code")
    save_checkpoint(checkpoint, {"a": torch.zeros(1)}, {}, info, [metric(step) for step in steps])


def status_of(run):
    return run.client().get_run(run.run_id).info.status


def away(run):
    return RunRef("http://127.0.0.1:9", run.experiment_id, run.run_id)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sweep_runs, "_SEND_PATIENCE_SECONDS", 0.0)


def test_a_trial_that_ends_is_closed_with_what_was_kept(tmp_path, whole):
    done, killed = add(tmp_path, whole, 0, "completed"), add(tmp_path, whole, 1, "stopped")
    keep(tmp_path, 0, 1, 2)
    keep(tmp_path, 1, 1)
    leave_checkpoint(tmp_path, 1, 1, 2)
    for number in range(2):
        close_trial(whole, tmp_path, read_trial(tmp_path, number))
        assert not (trial_folder(tmp_path, number) / UNSENT_FILE).exists()
    assert (status_of(done), status_of(killed)) == ("FINISHED", "KILLED")
    for run in (done, killed):
        assert metric_histories(run) == {"loss/total": ([1, 2], [0.5, 1.0])}
    tags = killed.client().get_run(killed.run_id).data.tags
    assert (tags["xkd.sweep.status"], tags["xkd.sweep.values.seed"]) == ("stopped", "1")


@pytest.mark.usefixtures("impatient")
def test_what_was_away_at_the_end_of_a_trial_is_made_up_for_at_the_end(tmp_path, whole, caplog):
    killed, running = add(tmp_path, whole, 0, "stopped"), add(tmp_path, whole, 1)
    leave_checkpoint(tmp_path, 0, 1, 2)
    keep(tmp_path, 1, 3)
    file = trial_folder(tmp_path, 0) / UNSENT_FILE
    close_trial(away(whole), tmp_path, read_trial(tmp_path, 0))
    assert len(file.read_text().splitlines()) == 2
    send_unsent(away(whole), tmp_path)
    assert f"all metrics of trial-000; the same command sends what is left in {file}" in caplog.text
    send_unsent(whole, tmp_path)
    assert not file.exists()
    assert metric_histories(killed) == {"loss/total": ([1, 2], [0.5, 1.0])}
    assert metric_histories(running) == {}  # goes on, and sends its own


def test_runs_that_are_still_open_end_as_their_trials_did(tmp_path, whole):
    runs = [add(tmp_path, whole, 0, "completed"), add(tmp_path, whole, 1, "failed")]
    runs += [add(tmp_path, whole, 2), opened(tmp_path, "of no trial", whole)]
    other = opened(tmp_path, "of no sweep")
    close_orphaned_runs(whole, tmp_path)
    assert [status_of(run) for run in runs] == ["FINISHED", "FAILED", "KILLED", "KILLED"]
    assert (status_of(other), status_of(whole)) == ("RUNNING", "RUNNING")
    tags = runs[0].client().get_run(runs[0].run_id).data.tags
    assert tags["xkd.sweep.status"] == "completed"


@pytest.mark.usefixtures("impatient")
def test_open_runs_that_mlflow_does_not_tell_are_a_warning(tmp_path, whole, caplog):
    close_orphaned_runs(away(whole), tmp_path)
    assert "MLflow does not say which runs of" in caplog.text

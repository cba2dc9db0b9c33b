"""What is measured reaches MLflow, however long it is away."""

import json
import logging
import socket
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, TEMPORARILY_UNAVAILABLE
from mlflow.tracking import MlflowClient

from pipelines.config.base import TrackingConfig
from pipelines.config.ingest import IngestConfig
from pipelines.errors import JobFailed, UserError
from pipelines.sweep.runs import close_strays, close_trial
from pipelines.sweep.trial_files import add_trial, read_trial, trial_folder
from pipelines.tracking import tracker as tracking
from pipelines.tracking.tracker import (
    RunRef,
    Tracker,
    check_tracking,
    close_run,
    log_dataset,
    metric_histories,
    open_run,
)
from pipelines.training.checks import RUN_FILE
from tests.helpers.training import wait_until


def run_at(home: Path, **how: Any) -> RunRef:
    config = IngestConfig.model_validate(
        {"output": str(home / "clips"), "tracking": {"uri": f"sqlite:///{home}/mlflow.db"}}
    )
    return open_run(config, "ingest", "test", **how)


def test_a_part_of_a_run_logs_where_that_one_does(tmp_path, monkeypatch):
    whole = run_at(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("XKD_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    config = IngestConfig.model_validate({"output": "clips", "tracking": {"experiment": "other"}})
    part = open_run(config, "ingest", "part", parent=whole)
    assert (part.uri, part.experiment_id) == (whole.uri, whole.experiment_id)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://localhost:50o0", r"\(http://localhost:50o0\) must be http.* integer value"),
        ("http://localhost:99999", r"\(http://localhost:99999\) must be http.* out of range"),
        ("http://me:secret@[::1", r"\(http://\*\*\*@\[::1\) must be http.* Invalid IPv6"),
        ("http://", r"\(http://\) must be http"),
        ("postgresql://me:secret@h:1/db", r"\(postgresql://\*\*\*@h:1/db\) must be http"),
        ("sqlite:///here.db", r"\(sqlite:///here.db\) must name an absolute file"),
        ("sqlite:///{folder}", r"must name a database of SQLite or a file that is not there yet"),
        ("sqlite:///{folder}/text.db", r"text.db\) must name a database of SQLite"),
        ("sqlite:///{folder}/text.db/in.db", r"must lie in a folder, but .*text.db is a file"),
    ],
)
def test_a_wrong_address_is_refused_in_one_line(tmp_path, uri, message):
    (tmp_path / "text.db").write_text("no database, but notes")
    with pytest.raises(UserError, match=message) as refused:
        check_tracking(TrackingConfig(uri=uri.replace("{folder}", str(tmp_path))))
    assert "secret" not in str(refused.value)


def failing_first(monkeypatch, method, *errors):
    """Makes a method of MLflow's client fail so often before it works."""
    works, left = getattr(MlflowClient, method), list(errors)

    def fails_first(*args, **kwargs):
        if left:
            raise left.pop(0)
        return works(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, method, fails_first)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.01)


BUSY = MlflowException("failed with error code 503 != 200", TEMPORARILY_UNAVAILABLE)
NO_ANSWER = MlflowException("API request to http://me:secret@h:1/api failed: connection refused")
REFUSED = MlflowException("no permission", PERMISSION_DENIED)


@pytest.mark.parametrize("error", [BUSY, NO_ANSWER, ConnectionResetError()])
def test_a_run_that_goes_on_is_not_given_up_for_one_answer(tmp_path, monkeypatch, error):
    run = run_at(tmp_path)
    failing_first(monkeypatch, "get_run", error, error)
    assert run_at(tmp_path, run_id=run.run_id) == run


def test_a_run_that_is_gone_is_opened_anew(tmp_path):
    run = run_at(tmp_path)
    assert run_at(tmp_path, run_id="0" * 32).run_id not in (run.run_id, "0" * 32)
    run.client().delete_run(run.run_id)
    assert run_at(tmp_path, run_id=run.run_id).run_id != run.run_id


def test_what_mlflow_refuses_is_told_at_once(tmp_path, monkeypatch):
    run = run_at(tmp_path)
    failing_first(monkeypatch, "get_run", REFUSED)
    with pytest.raises(JobFailed, match=r"MLflow \(sqlite:.*\) fails: no permission"):
        run_at(tmp_path, run_id=run.run_id)


@pytest.mark.parametrize("method", ["create_run", "log_batch", "set_tag", "log_inputs"])
def test_the_start_of_a_part_waits_for_mlflow(tmp_path, monkeypatch, method):
    whole = run_at(tmp_path)
    failing_first(monkeypatch, method, *[NO_ANSWER] * 5)
    part = run_at(tmp_path, parent=whole)
    log_dataset(part, dataset_id="made12", path="/clips", num_clips=12, context="training")
    found = part.client().get_run(part.run_id)
    assert found.data.params["labels"] == "auto"
    assert found.data.tags["xkd.dataset.training"] == "made12"
    assert len(found.inputs.dataset_inputs) == 1


def test_mlflow_that_stays_away_is_one_line(tmp_path, monkeypatch):
    whole = run_at(tmp_path)
    failing_first(monkeypatch, "create_run", *[NO_ANSWER] * 1000)
    monkeypatch.setattr(tracking, "WORK_PATIENCE_SECONDS", 0.3)
    with pytest.raises(JobFailed) as failed:
        run_at(tmp_path, parent=whole)
    assert "\n" not in str(failed.value)
    assert "fails: API request to http://***@h:1/api failed" in str(failed.value)


@contextmanager
def dropping_connections():
    """A server that hangs up on everyone, by an address with a password."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with suppress(OSError):
                while True:
                    server.accept()[0].close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://me:secret@127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_a_password_is_told_by_nothing_that_fails(tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with dropping_connections() as uri:
        run = RunRef(uri, "0", "a" * 32)
        with pytest.raises(UserError) as refused:
            check_tracking(TrackingConfig(uri=uri))
        close_run(run, "FINISHED")
        tracker = Tracker(run, tmp_path / "unsent.jsonl")
        tracker.log({"loss/total": 0.5}, 1)
        tracker.close(patience_seconds=0.0)
        add_trial(tmp_path, 0, {})
        (trial_folder(tmp_path, 0) / RUN_FILE).write_text(json.dumps({"run_id": run.run_id}))
        close_trial(run, tmp_path, read_trial(tmp_path, 0))
        close_strays(run, tmp_path)
        logging.getLogger("mlflow.system_metrics").warning("Failed to get run at %s", uri)
    told = [str(refused.value), *(record.getMessage() for record in caplog.records)]
    assert len(told) >= 6
    assert sum("://***@127.0.0.1" in line for line in told) >= 5
    assert not any("secret" in line for line in [*told, *capsys.readouterr()])


def test_a_database_that_is_there_empty_or_not_yet_made_is_taken(tmp_path):
    (tmp_path / "empty.db").touch()
    run_at(tmp_path)
    for name in ("empty.db", "mlflow.db", "folder/new.db"):
        check_tracking(TrackingConfig(uri=f"sqlite:///{tmp_path}/{name}"))


def test_metrics_arrive_in_their_order(tmp_path):
    run = run_at(tmp_path)
    tracker = Tracker(run, tmp_path / "unsent.jsonl")
    for step in range(20):
        tracker.log({"loss/total": float(step)}, step)
    tracker.tag("xkd.warning.pace", "slow")
    tracker.close()
    assert metric_histories(run) == {"loss/total": (list(range(20)), [float(s) for s in range(20)])}
    assert run.client().get_run(run.run_id).data.tags["xkd.warning.pace"] == "slow"
    assert tracker.unsent() == []


def test_a_step_that_is_done_again_counts_once_with_its_later_value(tmp_path):
    run = run_at(tmp_path)
    for first, value in ((0, 0.5), (2, 0.25)):
        tracker = Tracker(run, tmp_path / "unsent.jsonl", resumed=first > 0)
        for step in range(first, 4):
            tracker.log({"time/clips_per_second": value}, step)
        tracker.close()
        time.sleep(0.002)  # MLflow's clock counts milliseconds
    expected = ([0, 1, 2, 3], [0.5, 0.5, 0.25, 0.25])
    assert metric_histories(run) == {"time/clips_per_second": expected}


def test_what_mlflow_did_not_take_is_sent_by_the_next_tracker(tmp_path):
    run = run_at(tmp_path)
    unsent = tmp_path / "unsent.jsonl"
    nowhere = RunRef("http://127.0.0.1:9", run.experiment_id, run.run_id)
    away = Tracker(nowhere, unsent)
    away.log({"loss/total": 0.25}, 1)
    away.log({"loss/total": 0.5}, 2)
    away.tag("xkd.warning.pace", "slow")
    wait_until(lambda: len(away.unsent()) == 3)
    from_checkpoint = away.unsent()
    away.close(patience_seconds=0.0)
    kept = [json.loads(line) for line in unsent.read_text().splitlines()]
    assert [line.get("step") for line in kept] == [1, 2, None]
    assert kept[2] == {"tag": "xkd.warning.pace", "value": "slow"}
    # A checkpoint may hold the same ones: nothing is doubled.
    back = Tracker(run, unsent, unsent=from_checkpoint)
    back.log({"loss/total": 0.75}, 3)
    back.close()
    assert metric_histories(run) == {"loss/total": ([1, 2, 3], [0.25, 0.5, 0.75])}
    assert run.client().get_run(run.run_id).data.tags["xkd.warning.pace"] == "slow"
    assert not unsent.exists()


def test_what_was_kept_stays_until_it_is_sent_and_a_broken_line_does_no_harm(tmp_path):
    run = run_at(tmp_path)
    unsent = tmp_path / "unsent.jsonl"
    line = '{"key": "loss/total", "value": 0.5, "step": 1, "timestamp": 1}\n'
    unsent.write_text(line + line[:20])
    nowhere = RunRef("http://127.0.0.1:9", run.experiment_id, run.run_id)
    away = Tracker(nowhere, unsent)
    away.log({"loss/total": 0.25}, 2)
    assert unsent.read_text().startswith(line)
    away.close(patience_seconds=0.0)
    assert [json.loads(line)["step"] for line in unsent.read_text().splitlines()] == [1, 2]
    back = Tracker(run, unsent)
    back.close()
    assert metric_histories(run) == {"loss/total": ([1, 2], [0.5, 0.25])}
    assert not unsent.exists()


def test_a_closing_tracker_pauses_between_its_tries(tmp_path, monkeypatch):
    run = run_at(tmp_path)
    tries = []
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(Tracker, "_sent", lambda *_: tries.append(0) or False)
    tracker = Tracker(run, tmp_path / "unsent.jsonl")
    tracker.log({"loss/total": 0.25}, 1)
    tracker.close(patience_seconds=1.0)
    assert 2 <= len(tries) <= 14

"""A run is opened, continued and read back, also while MLflow answers badly."""

import json
import time

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, TEMPORARILY_UNAVAILABLE
from mlflow.tracking import MlflowClient

from pipelines.config.ingest import IngestConfig
from pipelines.errors import JobFailed
from pipelines.tracking import runs, server
from pipelines.tracking.runs import RunRef, log_dataset, metric_histories, open_run
from pipelines.tracking.tracker import Tracker
from tests.helpers.tracking import run_at


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


def failing_first(monkeypatch, method, *errors):
    """Makes a method of MLflow's client fail so often before it works."""
    works, left = getattr(MlflowClient, method), list(errors)

    def fails_first(*args, **kwargs):
        if left:
            raise left.pop(0)
        return works(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, method, fails_first)
    monkeypatch.setattr(server, "RETRY_SECONDS", 0.01)


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


@pytest.mark.parametrize("folder", ["clips", "/".join(["a" * 100] * 8)])
def test_equal_clips_at_two_places_keep_their_own_sources(tmp_path, folder):
    sources = []
    for place in ("s3://one/home", "s3://two/home", "s3://one/home"):
        run = run_at(tmp_path)
        path = f"{place}/{folder}"
        log_dataset(run, dataset_id="made12", path=path, num_clips=12, context="training")
        (logged,) = run.client().get_run(run.run_id).inputs.dataset_inputs
        assert json.loads(logged.dataset.source) == {"uri": path}
        sources.append(logged.dataset.name)
    assert sources[0] == sources[2] != sources[1]


def test_mlflow_that_stays_away_is_one_line(tmp_path, monkeypatch):
    whole = run_at(tmp_path)
    failing_first(monkeypatch, "create_run", *[NO_ANSWER] * 1000)
    monkeypatch.setattr(runs, "_WORK_PATIENCE_SECONDS", 0.3)
    with pytest.raises(JobFailed) as failed:
        run_at(tmp_path, parent=whole)
    assert "\n" not in str(failed.value)
    assert "fails: API request to http://***@h:1/api failed" in str(failed.value)


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


def test_a_run_in_a_file_has_a_page_and_a_command_that_serves_it(tmp_path):
    run = run_at(tmp_path)
    ending = f"/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    assert run.page() == f"http://127.0.0.1:5000{ending}"
    assert run.server_command().endswith(f"mlflow ui --backend-store-uri {run.uri}")
    remote = RunRef("https://host/mlflow/", run.experiment_id, run.run_id)
    assert (remote.page(), remote.server_command()) == (f"https://host/mlflow{ending}", "")

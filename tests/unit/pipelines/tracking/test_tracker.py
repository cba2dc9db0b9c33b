"""What is measured reaches MLflow, however long it is away."""

import json

import pytest

from pipelines.tracking import tracker as tracking
from pipelines.tracking.runs import RunRef, metric_histories
from pipelines.tracking.tracker import Tracker
from tests.helpers.tracking import run_at
from tests.helpers.training import wait_until


@pytest.fixture(autouse=True)
def _give_up_at_once(monkeypatch):
    """MLflow itself repeats a request to a server that is away, for seconds."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


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

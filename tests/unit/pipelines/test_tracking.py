"""What is measured reaches MLflow, however long it is away."""

import json
import time
from pathlib import Path

import pytest
from training import wait_until

from pipelines import tracking
from pipelines.config import IngestConfig, TrackingConfig
from pipelines.errors import UserError
from pipelines.tracking import RunRef, Tracker, check_tracking, metric_histories, open_run


def run_at(home: Path) -> RunRef:
    config = IngestConfig.model_validate(
        {"output": str(home / "clips"), "tracking": {"uri": f"sqlite:///{home}/mlflow.db"}}
    )
    return open_run(config, "ingest", "test")


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

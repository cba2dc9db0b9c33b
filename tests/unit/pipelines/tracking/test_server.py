"""A server that is wrong or away is reported in one line, without its password."""

import json
import logging
import socket
import threading
from contextlib import contextmanager, suppress

import pytest

from pipelines.config.base import TrackingSettings
from pipelines.errors import UserError
from pipelines.sweep.runs import close_orphaned_runs, close_trial
from pipelines.sweep.trial_files import add_trial, read_trial, trial_folder
from pipelines.tracking.run_folder import RUN_FILE
from pipelines.tracking.runs import RunRef, close_run
from pipelines.tracking.server import check_tracking
from pipelines.tracking.tracker import Tracker
from tests.helpers.tracking import run_at


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
        check_tracking(TrackingSettings(uri=uri.replace("{folder}", str(tmp_path))))
    assert "secret" not in str(refused.value)


def test_a_database_that_is_there_empty_or_not_yet_made_is_taken(tmp_path):
    (tmp_path / "empty.db").touch()
    run_at(tmp_path)
    for name in ("empty.db", "mlflow.db", "folder/new.db"):
        check_tracking(TrackingSettings(uri=f"sqlite:///{tmp_path}/{name}"))


@pytest.mark.parametrize("name", ["a%20b", "a?b"])
def test_a_home_that_mlflow_would_read_as_another_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XKD_HOME", str(tmp_path / name))
    with pytest.raises(UserError, match=r"would be read as .*/a.*; rename that folder, or set"):
        check_tracking(TrackingSettings())
    check_tracking(TrackingSettings(uri=f"sqlite:///{tmp_path}/a%2520b/mlflow.db"))
    assert not list(tmp_path.iterdir())


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
            check_tracking(TrackingSettings(uri=uri))
        close_run(run, "FINISHED")
        tracker = Tracker(run, tmp_path / "unsent.jsonl")
        tracker.log({"loss/total": 0.5}, 1)
        tracker.close(patience_seconds=0.0)
        add_trial(tmp_path, 0, {})
        (trial_folder(tmp_path, 0) / RUN_FILE).write_text(json.dumps({"run_id": run.run_id}))
        close_trial(run, tmp_path, read_trial(tmp_path, 0))
        close_orphaned_runs(run, tmp_path)
        logging.getLogger("mlflow.system_metrics").warning("Failed to get run at %s", uri)
    reported = [str(refused.value), *(record.getMessage() for record in caplog.records)]
    assert len(reported) >= 6
    assert sum("://***@127.0.0.1" in line for line in reported) >= 5
    assert not any("secret" in line for line in [*reported, *capsys.readouterr()])

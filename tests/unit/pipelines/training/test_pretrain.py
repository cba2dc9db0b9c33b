"""What a training refuses, and that an interrupted one is waited for, however its workers end."""

import json
import os
import signal
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from pipelines.errors import JobFailed, UserError
from pipelines.files import locked
from pipelines.tracking.run_folder import LOCK_FILE, RUN_FILE, RunFolder
from pipelines.tracking.runs import RunRef
from pipelines.tracking.tracker import UNSENT_FILE
from pipelines.training.checks import check_pretrain
from pipelines.training.interrupts import fit_unless_interrupted
from pipelines.training.outcome import TrainOutcome, warn_of_unsent
from pipelines.training.pretrain import _open_run, pretrain
from pipelines.training.stopping import Stop
from tests.helpers.training import folder_of, leave_checkpoint, tiny_config, tiny_dataset

OUTCOME = TrainOutcome(
    first_step=0,
    next_step=5,
    total_steps=9,
    clips_per_second=1.0,
    stop=Stop.ASKED,
    not_finite=None,
    has_failed=False,
    failure="",
)


@pytest.fixture
def interrupted_fit():
    """A training that is interrupted while it runs and ends some time after it was asked to."""
    asked, ended = threading.Event(), []

    def fit():
        threading.Event().wait(0.3)  # until the training is waited for
        os.kill(os.getpid(), signal.SIGINT)
        asked.wait(30)
        threading.Event().wait(0.3)
        ended.append(asked.is_set())
        return OUTCOME

    # A shell that starts the tests in the background has its children ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield fit, asked, ended
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_the_checkpoint_and_says_what_is_saved(interrupted_fit):
    fit, asked, ended = interrupted_fit
    with pytest.raises(KeyboardInterrupt, match="5 of 9 steps done and saved"):
        fit_unless_interrupted(fit, asked.set)
    assert ended == [True]


def test_a_failure_after_ctrl_c_is_told(interrupted_fit):
    fit, asked, _ = interrupted_fit

    def fail():
        fit()
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        fit_unless_interrupted(fail, asked.set)


def quiet(*_, **__):
    """Where progress goes, and what a test does not need."""


def test_a_run_with_other_settings_is_not_taken_for_this_one(tmp_path):
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "clips"))
    folder_of(config).mkdir(parents=True)
    other = {**config.model_dump(mode="json"), "seed": 5}
    (folder_of(config) / RUN_FILE).write_text(json.dumps({"run_id": "a", "config": other}))
    with pytest.raises(UserError, match="seed is 5 there and 0 here"):
        pretrain(config, on_progress=quiet)


def test_metrics_that_mlflow_did_not_take_are_told(tmp_path, caplog):
    warn_of_unsent(tmp_path)
    assert not caplog.records
    (tmp_path / UNSENT_FILE).write_text("{}\n")
    warn_of_unsent(tmp_path)
    assert f"run the same command to send those in {tmp_path}" in caplog.text


@pytest.mark.parametrize("is_own", [True, False])
def test_clips_that_changed_since_the_checkpoint_are_found_before_the_workers_are(tmp_path, is_own):
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "clips"))
    checkpoint = leave_checkpoint(config)
    if not is_own:
        config = config.model_copy(update={"name": "second", "resume": str(checkpoint)})
    assert check_pretrain(config) == []
    leave_checkpoint(tiny_config(tmp_path, tmp_path / "clips"), "grown25")
    message = "trained on dataset grown25, but dataset .* is made24 now"
    (mistake,) = check_pretrain(config)
    with pytest.raises(UserError, match=message) as raised:
        pretrain(config, on_progress=quiet)
    assert mistake == str(raised.value)


def test_a_second_training_of_that_name_is_refused(tmp_path):
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "clips"))
    left = leave_checkpoint(config)
    with (
        locked(folder_of(config) / LOCK_FILE, "the first"),
        pytest.raises(
            UserError, match=rf"run \(.*tiny\) is being written by process {os.getpid()}"
        ),
    ):
        pretrain(config, on_progress=quiet)
    assert left.exists()


def test_a_training_that_begins_from_another_has_a_run_of_its_own(tmp_path):
    first = tiny_config(tmp_path, tmp_path)
    folder_of(first).mkdir(parents=True)
    run = _open_run(first, RunFolder(folder_of(first)), None)
    checkpoint = leave_checkpoint(first, run_id=run.run_id)
    (folder_of(first) / RUN_FILE).unlink()
    again = first.model_copy(update={"resume": str(checkpoint)})
    assert _open_run(again, RunFolder(folder_of(again)), None) == run
    second = again.model_copy(update={"name": "second"})
    folder_of(second).mkdir()
    assert _open_run(second, RunFolder(folder_of(second)), None).run_id != run.run_id


def test_the_password_of_the_server_is_not_written_down(tmp_path, monkeypatch):
    """Neither in the run's folder nor in what workers get, which they put into checkpoints."""
    opened = RunRef(f"sqlite:///{tmp_path}/mlflow.db", "0", "run")
    handed_on = {}

    def fit(_config, _scaling, values, _callbacks):
        handed_on.update(values)
        raise JobFailed("enough seen")

    for name, instead in {
        "log_dataset": quiet,
        "tracked": nullcontext,
        "watched_board": lambda _: nullcontext(
            SimpleNamespace(ask_to_stop=SimpleNamespace(remote=quiet))
        ),
        "_scaling": lambda _: SimpleNamespace(),
        "_fit": fit,
    }.items():
        monkeypatch.setattr(f"pipelines.training.pretrain.{name}", instead)
    monkeypatch.setattr("pipelines.tracking.run_folder.open_run", lambda *_, **__: opened)
    server = {"uri": "http://me:p@ss@mlflow.example:5000"}
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "clips"), tracking=server)
    with pytest.raises(JobFailed, match="enough seen"):
        pretrain(config, on_progress=quiet)
    for written in ((folder_of(config) / RUN_FILE).read_text(), json.dumps(handed_on["config"])):
        assert "http://***@mlflow.example:5000" in written
        assert "ss@" not in written

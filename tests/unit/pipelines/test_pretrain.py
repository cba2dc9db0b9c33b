"""What a training refuses, and that an interrupted one is waited for, however its workers end."""

import json
import os
import signal
import threading

import pytest
from training import folder_of, tiny_config, tiny_dataset

from pipelines.errors import UserError
from pipelines.pretrain import RUN_FILE, _fit_unless_interrupted, pretrain

OUTCOME = {"next_step": 5, "total_steps": 9, "not_finite": None, "has_failed": False}


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

    return fit, asked, ended


def test_ctrl_c_waits_for_the_checkpoint_and_says_what_is_saved(interrupted_fit):
    fit, asked, ended = interrupted_fit
    with pytest.raises(KeyboardInterrupt, match="5 of 9 steps are done and saved"):
        _fit_unless_interrupted(fit, asked.set)
    assert ended == [True]


def test_a_failure_after_ctrl_c_is_told(interrupted_fit):
    fit, asked, _ = interrupted_fit

    def fail():
        fit()
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        _fit_unless_interrupted(fail, asked.set)


def quiet(*_):
    """Where progress goes."""


def test_a_run_with_other_settings_is_not_taken_for_this_one(tmp_path):
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "clips"))
    folder_of(config).mkdir(parents=True)
    other = {**config.model_dump(mode="json"), "seed": 5}
    (folder_of(config) / RUN_FILE).write_text(json.dumps({"run_id": "a", "config": other}))
    with pytest.raises(UserError, match="seed is 5 there and 0 here"):
        pretrain(config, on_progress=quiet)

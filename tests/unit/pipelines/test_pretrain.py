"""An interrupted training is waited for, however its workers end."""

import os
import signal
import threading

import pytest

from pipelines.pretrain import _fit_unless_interrupted

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

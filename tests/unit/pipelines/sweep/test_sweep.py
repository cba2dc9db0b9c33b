"""How a sweep ends when Ray or Tune does, what stays of its trials, which are run again."""

import errno
import pickle
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from ray import cloudpickle, tune
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayTaskError
from ray.tune.integration.ray_train import TuneReportCallback

from pipelines.errors import JobFailed, Stopped, Terminated
from pipelines.evaluation.rungs import add_rung
from pipelines.sweep.run_trial import FAILURE, _RungReport
from pipelines.sweep.search import SweepSearch, tune_result
from pipelines.sweep.sweep import _Bookkeeper, _fit, _has_collapsed, reopen_failed, trial_outcome
from pipelines.sweep.trial_files import add_trial, end_trial, read_trial, read_trials, trial_folder
from pipelines.tracking.runs import RunRef
from ray_jobs.cli.console import StageProgress
from tests.helpers.sweeps import rungs_to, sweep_config


def tuner_that_raises(error):
    def fit():
        raise error

    return SimpleNamespace(fit=fit)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OutOfMemoryError("Task was killed due to the node running low on memory.\nMore."),
            "OutOfMemoryError: Task was killed due to the node running low on memory. More. Trials",
        ),
        (NodeDiedError("node 1 is gone"), "NodeDiedError: node 1 is gone. Trials"),
        (ActorDiedError(), "ActorDiedError: The actor died unexpectedly"),
        (tune.TuneError("Trials did not complete"), "TuneError: Trials did not complete. Trials"),
    ],
)
def test_what_ray_fails_with_is_one_line_that_says_how_to_go_on(error, line):
    with pytest.raises(JobFailed) as failed:
        _fit(tuner_that_raises(error))
    (reported,) = str(failed.value).splitlines()
    assert reported.startswith(f"the sweep was interrupted by {line}")
    assert reported.endswith(
        "Trials and their checkpoints stay; the same command continues the sweep"
    )


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        Terminated(),
        Stopped("max_seconds are over"),
        RayTaskError("work", "Traceback ...", KeyError("loss")),
    ],
)
def test_an_interrupt_or_a_mistake_in_the_code_stays_what_it_is(error):
    with pytest.raises(type(error)) as raised:
        _fit(tuner_that_raises(error))
    assert raised.value is error


class FullDisk(tune.Callback):
    """What is to be written down when a trial reports cannot be."""

    def on_trial_result(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/full")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_what_tune_raises_as_a_text_is_named_by_its_cause(tmp_path):
    tuner = tune.Tuner(
        lambda _: tune.report({"rung": 1}),
        run_config=tune.RunConfig(storage_path=str(tmp_path), callbacks=[FullDisk()], verbose=0),
    )
    with pytest.raises(JobFailed, match=r"by OSError: No space left on device\. Trials"):
        _fit(tuner)


def test_a_trial_that_had_ended_keeps_its_end_if_tune_fails_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.sweep.sweep.close_trial", lambda *_: None)
    config = sweep_config(tmp_path)
    bookkeeper = _Bookkeeper(config, tmp_path, RunRef("", "", ""), lambda *_: None)
    for number in range(2):
        add_trial(tmp_path, number, {})
        for rung in rungs_to(4, 0.5):
            add_rung(trial_folder(tmp_path, number), rung)

    def reported(number):
        return SimpleNamespace(
            config={"number": number}, last_result={"rung": 4}, get_error=lambda: "it died\nof this"
        )

    bookkeeper.on_trial_complete(trial=reported(0))
    for number in range(2):
        bookkeeper.on_trial_error(trial=reported(number))
    assert read_trial(tmp_path, 0).status == "completed"
    assert (read_trial(tmp_path, 1).status, read_trial(tmp_path, 1).reason) == ("failed", "of this")


SIGN = ("video features are alike",)


def last_result(config, rung, collapse=()):
    return tune_result(config, rungs_to(rung, 0.5, collapse=collapse)[-1])


@pytest.mark.parametrize(
    ("rung", "collapse", "ends", "end"),
    [
        (4, (), True, ("completed", "")),
        (2, (), True, ("stopped", "at rung 2 of 4 by asha")),
        (2, SIGN, True, ("collapsed", f"at rung 2: {SIGN[0]}")),
        (4, SIGN, True, ("collapsed", f"at rung 4: {SIGN[0]}")),
        (2, SIGN, False, ("stopped", "at rung 2 of 4 by asha")),
        (4, SIGN, False, ("completed", f"but had collapsed: {SIGN[0]}")),
    ],
)
def test_how_a_trial_ended(tmp_path, rung, collapse, ends, end):
    config = sweep_config(tmp_path, stopping={"collapsed": ends})
    assert trial_outcome(config, last_result(config, rung, collapse)) == end


def test_a_failure_is_how_it_ended_whatever_else_it_says(tmp_path):
    config = sweep_config(tmp_path)
    result = last_result(config, 2, SIGN) | {FAILURE: "no room"}
    assert trial_outcome(config, result) == ("failed", "no room")


def test_tune_ends_a_trial_that_has_collapsed_and_no_other(tmp_path):
    config = sweep_config(tmp_path)
    assert _has_collapsed("a", last_result(config, 2, SIGN))
    assert not _has_collapsed("a", last_result(config, 2))
    assert not _has_collapsed("a", {})


def test_tune_is_told_of_each_rung_once_but_the_last(tmp_path, monkeypatch):
    config, reported = sweep_config(tmp_path), []
    monkeypatch.setattr(TuneReportCallback, "__init__", lambda _: None)
    monkeypatch.setattr(
        TuneReportCallback, "after_report", lambda _, __, metrics, ___: reported.extend(metrics)
    )
    report = _RungReport(config, last_reported=1)
    rungs = rungs_to(4, 0.5, collapse=SIGN)
    for number in (None, 0, 1, 2, None, 2, 3, 4):
        metrics = {} if number is None else asdict(rungs[number])
        report.after_report(None, [metrics, {}], "a checkpoint")
    assert reported == [tune_result(config, rung) for rung in rungs[2:4]]
    assert reported[0]["collapse"] == ""


def test_failed_trials_alone_are_taken_up_again(tmp_path):
    config = sweep_config(tmp_path, search={"num_trials": 6, "startup_trials": 4})
    ends = ["completed", "failed", "stopped", "collapsed", "failed"]
    for number, status in enumerate(ends):
        add_trial(tmp_path, number, {"objective.refinement": "mean"})
        for rung in rungs_to(2, 0.5):
            add_rung(trial_folder(tmp_path, number), rung)
        end_trial(tmp_path, number, status, "why")
    before = read_trials(tmp_path)
    reopen_failed(config, tmp_path)
    after = read_trials(tmp_path)
    assert [trial.status for trial in after] == [
        "running" if status == "failed" else status for status in ends
    ]
    assert [(trial.values, trial.rungs) for trial in after] == [
        (trial.values, trial.rungs) for trial in before
    ]
    search = SweepSearch(config, tmp_path)
    assert [search.suggest("a"), search.suggest("b")] == [{"number": 1}, {"number": 4}]


def test_failed_trials_that_a_shorter_sweep_has_no_room_for_stay_failed(tmp_path):
    config = sweep_config(tmp_path, search={"num_trials": 2})
    for number, status in enumerate(["failed", "completed", "failed"]):
        add_trial(tmp_path, number, {})
        end_trial(tmp_path, number, status, "why")
    reopen_failed(config, tmp_path)
    statuses = [trial.status for trial in read_trials(tmp_path)]
    assert statuses == ["running", "completed", "failed"]


def test_tune_can_pickle_what_shows_the_progress(tmp_path):
    """A terminal's progress holds a lock, and Tune pickles its callbacks at the start."""
    progress = StageProgress("sweep", "trials")
    run = RunRef(f"sqlite:///{tmp_path}/mlflow.db", "0", "run")
    bookkeeper = _Bookkeeper(sweep_config(tmp_path), tmp_path, run, progress)
    pickle.loads(cloudpickle.dumps(bookkeeper))
    assert bookkeeper._on_progress is progress

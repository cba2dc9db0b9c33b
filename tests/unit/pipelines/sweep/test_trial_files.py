"""What is on disk is what a trial is; a rung measured again replaces what came after it."""

from pipelines.evaluation.rungs import add_rung, read_rungs
from pipelines.sweep.trial_files import (
    Trial,
    add_trial,
    end_trial,
    read_trial,
    read_trials,
    trial_folder,
)
from tests.helpers.sweeps import rungs_to


def test_a_trial_comes_back_as_it_was_written(tmp_path):
    values = {"objective.refinement": "none", "model.encoder.depth": 3, "x": [1.5, None]}
    add_trial(tmp_path, 3, values)
    rungs = rungs_to(2, 0.5, collapse=("video",))
    for rung in rungs:
        add_rung(trial_folder(tmp_path, 3), rung)
    end_trial(tmp_path, 3, "collapsed", "at rung 2")
    (trial,) = read_trials(tmp_path)
    assert (trial.number, trial.values, trial.status) == (3, values, "collapsed")
    assert [rung.scores for rung in trial.rungs] == [rung.scores for rung in rungs]
    assert list(trial.rungs[-1].collapse) == ["video"]


def test_trials_come_by_number(tmp_path):
    for number in (1000, 2, 10):
        add_trial(tmp_path, number, {})
    assert [trial.number for trial in read_trials(tmp_path)] == [2, 10, 1000]
    assert read_trial(tmp_path, 10) == Trial(10, {})
    assert read_trials(tmp_path / "nothing") == []


def test_a_rung_measured_again_replaces_itself_and_what_came_after(tmp_path):
    for rung in rungs_to(3, 0.5):
        add_rung(tmp_path, rung)
    again = rungs_to(3, 0.9)
    add_rung(tmp_path, again[1])
    assert [rung.rung for rung in read_rungs(tmp_path)] == [0, 1]
    assert read_rungs(tmp_path)[1].scores == again[1].scores

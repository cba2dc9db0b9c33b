"""Suggestions follow from what is on disk, so that a sweep goes on as it would have."""

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from pipelines.evaluation.rungs import add_rung
from pipelines.sweep.search import (
    SweepSearch,
    make_scheduler,
    num_trials,
    study_of,
    suggestion,
    tune_result,
)
from pipelines.sweep.trial_files import Trial, add_trial, end_trial, read_trial, trial_folder
from tests.helpers.sweeps import example_trials, rungs_to, sweep_config


class Reporting:
    """What a scheduler sees of a trial of Tune."""

    def __init__(self, trial_id):
        self.trial_id = trial_id


def decisions(config, scheduler, name, trial):
    """What a scheduler says at each rung of a trial, until it stops it."""
    reporting, found = Reporting(name), []
    scheduler.on_trial_add(None, reporting)
    for rung in trial.rungs[1:]:
        found.append(scheduler.on_trial_result(None, reporting, tune_result(config, rung)))
        if found[-1] == TrialScheduler.STOP:
            break
    return found


@pytest.mark.parametrize("kind", ["random", "tpe"])
@pytest.mark.parametrize("modality", ["mean", "both"])
def test_the_same_past_gives_the_same_suggestion(tmp_path, kind, modality):
    config = sweep_config(
        tmp_path,
        search={"kind": kind, "num_trials": 14, "startup_trials": 3},
        objective={"modality": modality},
    )
    trials = example_trials(config, 10)
    assert suggestion(config, trials, 10) == suggestion(config, trials, 10)
    assert len({str(trial.values) for trial in trials}) == len(trials)


def test_tpe_learns_and_random_does_not(tmp_path):
    """The score rises with one setting: TPE's later suggestions are higher than random ones."""

    def late_mean(kind):
        config = sweep_config(
            tmp_path,
            space={"objective.alignment_weight": {"uniform": [0.0, 1.0]}},
            search={"kind": kind, "num_trials": 40, "startup_trials": 8},
        )
        trials: list[Trial] = []
        for number in range(30):
            values = suggestion(config, trials, number)
            rungs = rungs_to(4, values["objective.alignment_weight"])
            trials.append(Trial(number, values, rungs, "completed"))
        late = [trial.values["objective.alignment_weight"] for trial in trials[15:]]
        return sum(late) / len(late)

    assert late_mean("tpe") > 0.75
    assert 0.3 < late_mean("random") < 0.7


def test_two_objectives_are_two_values(tmp_path):
    config = sweep_config(tmp_path, objective={"modality": "both", "measure": "linear"})
    trials = example_trials(config)
    study = study_of(config, trials)
    assert len(study.directions) == 2
    done = next(trial for trial in trials if trial.status == "completed")
    scores = done.rungs[-1].scores
    assert study.trials[done.number].values == [scores["video/linear"], scores["audio/linear"]]


def test_trials_that_did_not_end_come_first_and_none_twice(tmp_path):
    config = sweep_config(tmp_path, search={"num_trials": 4})
    for number in range(3):
        add_trial(tmp_path, number, suggestion(config, [], number))
    add_rung(trial_folder(tmp_path, 1), rungs_to(4, 0.5)[-1])
    end_trial(tmp_path, 1, "completed", "")
    before = read_trial(tmp_path, 2).values
    search = SweepSearch(config, tmp_path)
    numbers = [search.suggest(str(i)) for i in range(4)]
    assert numbers == [{"number": 0}, {"number": 2}, {"number": 3}, Searcher.FINISHED]
    assert read_trial(tmp_path, 2).values == before


def test_a_new_trial_is_on_disk_before_it_is_known(tmp_path):
    config = sweep_config(tmp_path)
    assert SweepSearch(config, tmp_path).suggest("a") == {"number": 0}
    assert read_trial(tmp_path, 0).status == "running"
    assert SweepSearch(config, tmp_path).suggest("b") == {"number": 0}


def test_a_grid_is_as_long_as_its_combinations(tmp_path):
    space = {"seed": {"choice": [0, 1, 2]}, "objective.refinement": {"choice": ["mean", "none"]}}
    config = sweep_config(tmp_path, space=space, search={"kind": "grid"})
    assert num_trials(config) == 6
    for wanted, trials in ((4, 4), (9, 6)):
        search = {"kind": "grid", "num_trials": wanted}
        assert num_trials(sweep_config(tmp_path, space=space, search=search)) == trials
    assert suggestion(config, [], 5) == {"seed": 2, "objective.refinement": "none"}


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_stopping_counts_the_trials_of_an_earlier_driver(tmp_path, kind):
    config = sweep_config(tmp_path, stopping={"kind": kind, "min_trials": 2})
    past = [Trial(i, {}, rungs_to(4, 0.8 + i / 100), "completed") for i in range(3)]
    worse = Trial(9, {}, rungs_to(4, 0.1), "running")
    better = Trial(8, {}, rungs_to(3, 0.9), "running")
    scheduler = make_scheduler(config, past)
    assert decisions(config, scheduler, "worse", worse) == [TrialScheduler.STOP]
    assert TrialScheduler.STOP not in decisions(config, scheduler, "better", better)
    fresh = make_scheduler(config, [])
    assert decisions(config, fresh, "worse", worse)[0] == TrialScheduler.CONTINUE


def test_a_trial_that_goes_on_is_not_counted_twice(tmp_path):
    config = sweep_config(tmp_path, stopping={"kind": "asha"})
    half_way = Trial(0, {}, rungs_to(2, 0.5), "running")
    scheduler = make_scheduler(config, [half_way])
    assert decisions(config, scheduler, "again", half_way) == [TrialScheduler.CONTINUE] * 2


def test_no_stopping_lets_all_go_on(tmp_path):
    config = sweep_config(tmp_path, stopping={"kind": "none"})
    scheduler = make_scheduler(config, example_trials(config))
    trial = Trial(50, {}, rungs_to(4, 0.0), "running")
    assert set(decisions(config, scheduler, "x", trial)) == {TrialScheduler.CONTINUE}

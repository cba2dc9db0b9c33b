"""What trials say: the best over seeds, the front, and what explains the score."""

import math

import pytest

from pipelines.evaluation.rungs import Rung
from pipelines.sweep.results import (
    best_trial,
    by_score,
    importance,
    option_scores,
    pareto_front,
    trials_done,
    within_noise_of,
)
from pipelines.sweep.trial_files import Trial
from tests.helpers.sweeps import example_trials, rungs_to, sweep_config


def scored(number, video, audio, status="completed", **values):
    scores = {"video/knn": video, "audio/knn": audio}
    rungs = (
        Rung(0, 0, 0.0, {"video/knn": 0.1, "audio/knn": 0.1}, 100),
        Rung(4, 9, 8.0, scores, 100),
    )
    return Trial(number, values, rungs, status)


@pytest.fixture
def config(tmp_path):
    return sweep_config(tmp_path)


def test_the_best_is_that_of_the_best_mean_over_seeds(config):
    trials = [
        scored(0, 0.9, 0.9, x="lucky", seed=0),
        scored(1, 0.1, 0.1, x="lucky", seed=1),
        scored(2, 0.6, 0.6, x="steady", seed=0),
        scored(3, 0.7, 0.7, x="steady", seed=1),
        scored(4, 1.0, 1.0, "stopped", x="cut off"),
    ]
    assert best_trial(config, trials).number == 2
    assert best_trial(config, trials[4:]) is None


def test_the_objective_may_be_one_modality(tmp_path):
    trials = [scored(0, 0.9, 0.1, x=1), scored(1, 0.2, 0.7, x=2)]
    for modality, best in (("video", 0), ("audio", 1), ("mean", 0)):
        config = sweep_config(tmp_path, objective={"modality": modality})
        assert best_trial(config, trials).number == best


def test_the_front_is_what_no_trial_beats_in_both(config):
    points = [(0.2, 0.9), (0.5, 0.5), (0.4, 0.4), (0.9, 0.1), (0.5, 0.3)]
    trials = [scored(i, *point, x=i) for i, point in enumerate(points)]
    trials.append(scored(9, 1.0, 1.0, "stopped"))
    assert [trial.number for trial in pareto_front(config, trials)] == [0, 1, 3]


def test_scores_within_two_standard_errors_are_not_told_apart(config):
    error = math.sqrt(2 * 0.5 * 0.5 / 100)
    values = [0.5, 0.5 - 1.9 * error, 0.5 - 2.1 * error]
    trials = [scored(i, value, value, x=i) for i, value in enumerate(values)]
    assert [t.number for t in within_noise_of(config, trials, trials[0])] == [1]


def test_options_have_mean_and_spread_over_completed_trials(tmp_path):
    space = {"x": {"choice": ["a", "b", "c"]}, "seed": {"choice": [0, 1]}}
    config = sweep_config(tmp_path, space=space)
    trials = [
        scored(0, 0.2, 0.4, x="a", seed=0),
        scored(1, 0.4, 0.6, x="a", seed=1),
        scored(2, 0.5, 0.5, x="b", seed=0),
        scored(3, 0.9, 0.9, "stopped", x="b", seed=1),
    ]
    (key, (a, b)), *others = option_scores(config, trials).items()
    assert (key, others) == ("x", [])
    assert (a.value, a.num_trials) == ("a", 2)
    assert a.video == pytest.approx((0.3, math.sqrt(0.02)))
    assert a.objective == pytest.approx((0.4, math.sqrt(0.02)))
    assert b.objective[0] == 0.5
    assert math.isnan(b.objective[1])


def test_importance_finds_the_setting_that_matters(config):
    trials = example_trials(config, 30)  # scores follow from distillation_weight alone
    found = importance(config, trials)
    assert found.rung == 1
    assert next(iter(found.shares)) == "objective.distillation_weight"
    assert found.shares["objective.distillation_weight"] > 0.7
    assert "optimizer.video_momentum" not in found.shares  # not every trial has it
    assert sum(found.shares.values()) == pytest.approx(1.0)


def test_importance_is_not_invented(config):
    few = importance(config, example_trials(config, 4))
    assert not few.shares
    assert "too few" in few.why_not
    same = [Trial(i, {"model.encoder.depth": 2 + i % 3}, rungs_to(4, 0.5)) for i in range(9)]
    assert "same scores" in importance(config, same).why_not


def test_trials_are_sorted_by_what_they_came_to(config):
    trials = [
        Trial(0, {}, (), "failed"),
        scored(1, 0.9, 0.9, "stopped"),
        scored(2, 0.3, 0.3),
        scored(3, 0.4, 0.4),
    ]
    assert [trial.number for trial in by_score(config, trials)] == [3, 2, 1, 0]


def test_a_trial_that_runs_is_done_in_part(config):
    num_rungs = config.scoring.num_rungs
    assert num_rungs == 4
    begun = Trial(1, {}, (Rung(0, 0, 0.0, {}),))
    half_way = Trial(2, {}, (Rung(0, 0, 0.0, {}), Rung(2, 5, 4.0, {})))
    trials = [scored(0, 0.5, 0.5, "stopped"), begun, half_way, Trial(3, {})]
    assert trials_done(config, trials) == 1.5

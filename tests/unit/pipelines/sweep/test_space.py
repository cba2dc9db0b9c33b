"""What trials may be: conditions, combinations, and values as settings."""

import optuna
import pytest

from pipelines.config.dotted import merged
from pipelines.config.pretrain import PretrainSettings
from pipelines.sweep.space import (
    combinations,
    draw,
    edge_cases,
    grid,
    is_searched,
    num_combinations,
    parameters,
    settings_of,
)
from tests.helpers.sweeps import sweep_config

BUNDLES = {
    "ablation": {
        "bundles": {
            "all": {},
            "no_alignment": {"objective.alignment_weight": 0.0},
        }
    },
    "objective.refinement": {"choice": ["mean", "none"], "when": {"ablation": "all"}},
    "seed": {"choice": [0, 1, 2]},
}


@pytest.fixture
def space(tmp_path):
    return sweep_config(tmp_path).space


@pytest.fixture
def bundles(tmp_path):
    return sweep_config(tmp_path, space=BUNDLES).space


def test_drawn_values_lie_in_the_space_and_conditions_hold(space):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [draw(space, study.ask()) for _ in range(60)]
    for values in drawn:
        assert values["objective.refinement"] in ("mean", "none")
        assert 0.01 <= values["objective.distillation_weight"] <= 1.0
        assert values["model.encoder.depth"] in (2, 3, 4)
        with_momentum = "optimizer.video_momentum" in values
        assert with_momentum == (values["objective.refinement"] == "mean")
    assert {values["model.encoder.depth"] for values in drawn} == {2, 3, 4}
    below = sum(values["objective.distillation_weight"] < 0.1 for values in drawn)
    assert 18 <= below <= 42  # half of a log-uniform range is below its geometric mean


def test_a_grid_has_every_combination_once(bundles):
    found = list(grid(bundles))
    assert len(found) == num_combinations(bundles) == 3 * (2 + 1)
    assert len({tuple(sorted(values.items())) for values in found}) == len(found)
    assert found[0] == {"ablation": "all", "objective.refinement": "mean", "seed": 0}
    assert {"ablation": "no_alignment", "seed": 2} in found


def test_a_bundle_sets_several_settings(bundles):
    settings = settings_of(bundles, {"ablation": "no_alignment", "seed": 1})
    assert settings == {"objective.alignment_weight": 0.0, "seed": 1}
    base = {"objective": {"distillation_weight": 0.1}, "seed": 0}
    assert merged(base, settings) == {
        "objective": {"distillation_weight": 0.1, "alignment_weight": 0.0},
        "seed": 1,
    }
    assert base["seed"] == 0


def test_edges_come_with_what_their_conditions_ask(space):
    edges = {(key, value): values for key, value, values in edge_cases(space)}
    assert len(edges) == 2 + 2 + 2 + 2
    assert edges["optimizer.video_momentum", 0.9]["objective.refinement"] == "mean"
    for (key, _), values in edges.items():
        assert all(is_searched(space[entry], values) for entry in values), key


def test_values_survive_optuna(bundles):
    for values in grid(bundles):
        plain, distributions = parameters(bundles, values)
        trial = optuna.trial.create_trial(value=1.0, params=plain, distributions=distributions)
        assert draw(bundles, optuna.trial.FixedTrial(trial.params)) == values


def test_combinations_of_a_countable_space_are_its_own(bundles, space):
    assert list(combinations(bundles, 100, 0)) == list(grid(bundles))
    assert len(list(combinations(space, 7, 0))) == 7


def test_a_range_may_be_as_long_as_whole_numbers_go(tmp_path):
    space = sweep_config(tmp_path, space={"seed": {"integer": [0, 2**53]}}).space
    assert num_combinations(space) == 2**53 + 1
    drawn = [values["seed"] for values in combinations(space, 50, 0)]
    assert all(0 <= seed <= 2**53 for seed in drawn)


def test_settings_may_be_sections_and_lists(tmp_path):
    space = sweep_config(
        tmp_path,
        space={
            "objective.video_teacher_temperature": {
                "choice": [{"start": 0.04, "end": 0.07}, {"start": 0.1, "end": 0.1}]
            },
            "objective.mmd_gammas": {"choice": [[1.0], [1.0, 10.0]]},
        },
    ).space
    values = list(grid(space))[1]
    settings = merged({"epochs": 30, "batch_size": 4}, settings_of(space, values))
    checked = PretrainSettings.model_validate(settings)
    assert checked.objective.mmd_gammas == (1.0, 10.0)
    assert checked.objective.video_teacher_temperature.start == 0.04


def test_a_space_of_billions_is_counted_and_tried_out_at_random(tmp_path):
    """Without being made: each combination that is made takes its time and memory."""
    many = {f"entry{number}": {"choice": list(range(10))} for number in range(9)}
    many["entry9"] = {"integer": [1, 10**9], "when": {"entry0": [3, 4]}}
    many["entry10"] = {"choice": ["a", "b"], "when": {"entry9": 7}}
    space = sweep_config(tmp_path, space=many).space
    assert num_combinations(space) == 10**8 * (8 + 2 * (10**9 + 1))
    tried = list(combinations(space, 50, 0))
    assert tried == list(combinations(space, 50, 0))
    assert len({values["entry0"] for values in tried}) > 5  # a grid's first have but one
    assert next(grid(space)) == dict.fromkeys([f"entry{number}" for number in range(9)], 0)

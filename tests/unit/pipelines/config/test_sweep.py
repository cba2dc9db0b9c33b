"""A space is refused where it cannot be searched, and both ways to write it are one."""

import pytest
from pydantic import ValidationError

from pipelines.config.space import Domain
from tests.helpers.sweeps import PRETRAIN, SPACE, sweep_config


def test_nested_and_dotted_keys_are_the_same(tmp_path):
    nested = {"objective": {"alignment_weight": {"uniform": [0, 1]}}, "seed": {"choice": [0, 1]}}
    dotted = {"objective.alignment_weight": {"uniform": [0, 1]}, "seed": {"choice": [0, 1]}}
    assert sweep_config(tmp_path, space=nested).space == sweep_config(tmp_path, space=dotted).space


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ({}, r"kinds \(none\) must be one of choice, uniform"),
        ({"choice": [1], "uniform": [0, 1]}, r"kinds \(choice, uniform\)"),
        ({"uniform": [1, 1]}, r"uniform low \(1\) must be below high \(1\)"),
        ({"loguniform": [0, 1]}, "greater than 0"),
        ({"integer": [0, 10**19]}, r"less than or equal to 9007199254740992"),
        ({"integer": [-(10**19), 0]}, r"greater than or equal to -9007199254740992"),
        ({"choice": []}, r"choice \(\[\]\) must name values"),
        ({"choice": ["a", "a"]}, "each once"),
    ],
)
def test_domain_that_cannot_be_drawn_from(domain, message):
    with pytest.raises(ValidationError, match=message):
        Domain.model_validate(domain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {"kind": "tpe"}}, r"search\.num_trials is missing"),
        ({"search": {"kind": "grid"}}, "objective.distillation_weight, optimizer.video_momentum"),
        (
            {"space": {"a": {"choice": [1]}, "b": {"choice": [1], "when": {"a": 2}}}},
            r"space\.b\.when \(a: 2\) is no value of a",
        ),
        (
            {"space": {"b": {"choice": [1], "when": {"a": 1}}, "a": {"choice": [1]}}},
            r"space\.b\.when \(a\) must be a choice that stands before it",
        ),
        ({"stopping": {"grace_rungs": 5}}, r"grace_rungs \(5\) must not be above"),
        (
            {"pretrain": PRETRAIN | {"num_workers": (1, 2)}},
            r"num_workers \(1, 2\) must be one number",
        ),
        (
            {"pretrain": PRETRAIN | {"parallelism": "fsdp"}},
            r"parallelism \(fsdp\) must be ddp in a sweep",
        ),
        (
            {"pretrain": PRETRAIN | {"max_seconds": 60}},
            r"pretrain\.max_seconds \(60\) must not be set in a sweep",
        ),
        ({"space": {"a,b": {"choice": [1]}}}, r"space\.a,b must be at most 80 letters"),
        (
            {"space": {"terms": {"bundles": {"no/alignment": {}, "all": {}}}}},
            r"space\.terms\.bundles \(no/alignment\) must be at most 80 letters",
        ),
        ({"final": {"evaluate": {"role": "student"}}}, r"promote\.role \(teacher\) must equal"),
    ],
)
def test_search_that_cannot_work(tmp_path, changes, message):
    with pytest.raises(ValidationError, match=message):
        sweep_config(tmp_path, **changes)


def test_two_objectives_and_a_grid_exclude_each_other(tmp_path):
    space = {"seed": SPACE["objective.refinement"]}
    with pytest.raises(ValidationError, match=r"objective\.modality \(both\) needs"):
        sweep_config(tmp_path, space=space, search={"kind": "grid"}, objective={"modality": "both"})

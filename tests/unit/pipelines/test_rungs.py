"""Scores on the way are the same however often they are taken, and change nothing in training."""

from dataclasses import asdict

import pytest
import torch
from datasets import write_dataset
from sweep_example import PRETRAIN, TINY_MODEL

from pipelines.config import EvaluateSettings, PretrainConfig
from pipelines.rungs import RungPlan, RungScorer, rung_steps
from pipelines.sweep_trials import read_rungs
from xkd_core.xkd import build_xkd, model_tensors


@pytest.mark.parametrize(("total", "rungs"), [(10, 4), (4, 4), (1000, 3), (7, 1)])
def test_rungs_are_spread_and_the_last_is_at_the_end(total, rungs):
    steps = rung_steps(total, rungs)
    assert list(steps.values()) == list(range(rungs + 1))
    assert next(iter(steps)) == 0
    assert list(steps)[-1] == total
    gaps = [b - a for a, b in zip(list(steps)[:-1], list(steps)[1:], strict=True)]
    assert max(gaps) - min(gaps) <= 1


def test_a_training_without_a_plan_is_never_scored():
    scorer = RungScorer(None, 10, 2.0)
    assert not any(scorer.is_due(step) for step in range(11))


def test_scoring_repeats_and_leaves_the_networks_and_random_numbers_alone(tmp_path):
    clips = write_dataset(tmp_path / "clips", 12, split=lambda i: "test" if i % 4 == 0 else "train")
    config = PretrainConfig.model_validate(
        {**PRETRAIN, "model": TINY_MODEL, "name": "a", "dataset": str(clips), "output": "/x"}
    )
    model = build_xkd(config.model)
    plan = RungPlan(2, str(clips), EvaluateSettings().model_dump(mode="json"), str(tmp_path))
    scorer = RungScorer(asdict(plan), total_steps=8, steps_per_epoch=4.0)
    assert [step for step in range(9) if scorer.is_due(step)] == [0, 4, 8]
    before = {name: tensor.clone() for name, tensor in model_tensors(model).items()}
    random_state = torch.get_rng_state()
    first = scorer.score(model, config, 4, ["video outputs are alike"])
    second = scorer.score(model, config, 8, [])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(before[name], t) for name, t in model_tensors(model).items())
    assert first["scores"] == second["scores"]
    assert set(first["scores"]) == {"video/knn", "video/linear", "audio/knn", "audio/linear"}
    assert (first["rung"], first["epoch"], first["num_test"]) == (1, 1.0, 3)
    assert [len(rung.collapse) for rung in read_rungs(tmp_path)] == [1, 0]

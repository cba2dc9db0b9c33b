"""Scores on the way are the same however often they are taken, and change nothing in training."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from datasets import write_dataset
from sweep_example import PRETRAIN, TINY_MODEL

from pipelines import train_state
from pipelines.checkpoints import TrainingInfo, checkpoint_name, save_checkpoint
from pipelines.config import EvaluateSettings, PretrainConfig
from pipelines.rungs import RungPlan, RungScorer, rung_steps
from pipelines.sweep_trials import Rung, add_rung, read_rungs
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


@pytest.mark.parametrize(("scored_at", "is_told"), [(7, True), (5, False)])
def test_a_rung_that_ray_has_not_heard_of_is_told_with_its_scores(
    tmp_path, monkeypatch, scored_at, is_told
):
    """The worker died between the checkpoint and the next poll of Ray Train."""
    config = PretrainConfig.model_validate(
        {**PRETRAIN, "name": "a", "dataset": "/clips", "output": str(tmp_path)}
    )
    folder, reported = tmp_path / "a", []
    place = folder / checkpoint_name(7)
    info = TrainingInfo(7, 60, 6.0, {}, "made24", "", "code")
    save_checkpoint(place, {"a": torch.zeros(1)}, {}, info)
    rung = Rung(2, scored_at, 1.0, {"video/knn": 0.5}, 75, ("alike",))
    add_rung(folder, rung)
    monkeypatch.setattr(train_state, "broadcast_from_rank_zero", lambda name: name)
    monkeypatch.setattr(train_state, "report_checkpoint", lambda *told: reported.append(told))
    monkeypatch.setattr(train_state.train, "get_all_reported_checkpoints", list)
    context = SimpleNamespace(get_world_rank=lambda: 0)
    monkeypatch.setattr(train_state.train, "get_context", lambda: context)
    plan = RungPlan(4, "/clips", {}, str(folder))
    assert train_state.checkpoint_to_load(config, asdict(plan)) == place
    assert train_state.checkpoint_to_load(config) == place
    (first, scores), (second, none) = reported
    assert first.path == second.path == str(place)
    assert none == {}
    assert scores == ({**asdict(rung), "collapse": ["alike"]} if is_told else {})


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

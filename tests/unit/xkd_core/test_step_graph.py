"""A step that is recorded and replayed is the step that `train_step` takes."""

from types import SimpleNamespace

import pytest
import torch

from tests.helpers.networks import micro_config, micro_model, micro_views, train_state
from xkd_core import step_graph
from xkd_core.config import ObjectiveConfig, OptimizerConfig, TemperatureConfig
from xkd_core.health import measure_health
from xkd_core.losses import Centers
from xkd_core.step_graph import EAGER_STEPS, StepGraph
from xkd_core.train_step import non_finite, train_step
from xkd_core.views.views import Views
from xkd_core.xkd import model_tensors

STEPS = EAGER_STEPS + 3
PLAN = {"total_steps": 20, "steps_per_epoch": 2.0}
"""Temperatures change every other step, learning rate and momenta at every one."""


def changing_config(**objective):
    warmup = TemperatureConfig(start=0.04, end=0.1, warmup_epochs=8.0)
    return micro_config(
        objective=ObjectiveConfig(
            video_teacher_temperature=warmup, audio_teacher_temperature=warmup, **objective
        ),
        optimizer=OptimizerConfig(warmup_epochs=1.0, learning_rate=1e-3, layer_decay=0.8),
    )


def states(config, device="cpu"):
    model = micro_model()
    both = []
    for _ in range(2):
        other = micro_model()
        other.load_state_dict(model.state_dict())
        state = train_state(other.to(device), config)
        state.centers = Centers(*(center.to(device) for center in state.centers))
        both.append(state)
    return both


def batches(device="cpu"):
    return [Views(*(view.to(device) for view in micro_views())) for number in range(STEPS)]


def assert_same_training(config, device, *, measure_at=(), **options):
    """Takes the same steps both ways and compares what they return and leave."""
    expected_state, state = states(config, device)
    graph = StepGraph(state, config, **options)
    history = []
    for number, views in enumerate(batches(device)):
        measure = measure_health if number in measure_at else None
        expected = train_step(expected_state, views, config, measure=measure, **PLAN, **options)
        history.append((expected, graph.step(views, measure=measure, **PLAN)))
    for number, (expected, metrics) in enumerate(history):
        assert metrics.keys() == expected.keys(), number
        for name, value in expected.items():
            assert float(metrics[name]) == pytest.approx(float(value), rel=2e-4, abs=2e-5), name
    assert state.step == expected_state.step == STEPS
    tensors, wanted = model_tensors(state.model), model_tensors(expected_state.model)
    for name, tensor in wanted.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
    torch.testing.assert_close(state.centers, expected_state.centers, rtol=1e-4, atol=1e-6)
    for group, other in zip(
        state.optimizer.param_groups, expected_state.optimizer.param_groups, strict=True
    ):
        assert group["lr"] == other["lr"]
        assert not group["capturable"]


@pytest.fixture
def replays_by_repeating(monkeypatch):
    """Where there is no GPU, what is recorded is done again at each replay."""
    recorded = []

    def record(work):
        recorded.append(work)
        return SimpleNamespace(replay=work)

    monkeypatch.setattr(step_graph, "record", record)
    return recorded


@pytest.mark.parametrize("parts", [1, 2])
def test_a_replayed_step_follows_every_schedule(replays_by_repeating, parts):
    assert_same_training(
        changing_config(), "cpu", measure_at=(1, EAGER_STEPS + 1), accumulation_steps=parts
    )
    assert len(replays_by_repeating) == 1


def test_a_frozen_teacher_stays_in_a_replay(replays_by_repeating):
    assert_same_training(changing_config(teacher="frozen"), "cpu")


def test_metrics_of_a_step_outlive_the_next(replays_by_repeating):
    config = changing_config()
    state = states(config)[0]
    graph = StepGraph(state, config)
    totals = [graph.step(views, **PLAN)["loss/total"] for views in batches()]
    assert len({float(total) for total in totals}) == STEPS


def test_the_host_is_called_before_weights_change(replays_by_repeating):
    config = micro_config()
    state = states(config)[0]
    graph, seen = StepGraph(state, config), []
    for views in batches():
        weight = state.model.video_student.norm.weight
        graph.step(views, before_update=lambda w=weight: seen.append(w.detach().clone()), **PLAN)
    assert len({tuple(weight.tolist()) for weight in seen}) == STEPS


def test_float16_is_refused():
    config = micro_config()
    with pytest.raises(ValueError, match=r"autocast_dtype \(torch.float16\) must be"):
        StepGraph(train_state(micro_model(), config), config, autocast_dtype=torch.float16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("parts", [1, 2])
def test_a_graph_of_a_gpu_takes_the_same_steps(parts):
    assert_same_training(
        changing_config(), "cuda", measure_at=(1, EAGER_STEPS + 1), accumulation_steps=parts
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_replay_does_not_wait_for_a_gpu():
    config = changing_config()
    state = states(config, "cuda")[0]
    graph, views = StepGraph(state, config, autocast_dtype=torch.bfloat16), batches("cuda")
    for one in views:
        graph.step(one, **PLAN)
    torch.cuda.set_sync_debug_mode("error")
    try:
        metrics = graph.step(views[0], **PLAN)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not non_finite(metrics)

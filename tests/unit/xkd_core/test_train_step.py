"""Facts about one optimisation step."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.networks import micro_config, micro_model, micro_views, train_state
from xkd_core.config import ObjectiveConfig, OptimizerConfig
from xkd_core.losses import Centers
from xkd_core.train_step import non_finite, step_schedule, train_step
from xkd_core.views.views import Views
from xkd_core.xkd import model_tensors

METRICS = {
    "loss/total",
    "loss/reconstruction",
    "loss/reconstruction/video",
    "loss/reconstruction/audio",
    "loss/alignment",
    "loss/alignment/student",
    "loss/alignment/teacher",
    "loss/distillation",
    "loss/distillation/video_to_audio",
    "loss/distillation/audio_to_video",
    "grad_norm/total",
    "schedule/epoch",
    "schedule/learning_rate",
    "schedule/video_momentum",
    "schedule/audio_momentum",
    "schedule/video_teacher_temperature",
    "schedule/audio_teacher_temperature",
}


def run(state, config, views, num_steps, **options):
    return [
        train_step(state, views, config, total_steps=100, steps_per_epoch=10.0, **options)
        for _ in range(num_steps)
    ]


def test_the_loss_falls():
    config = micro_config()
    history = run(train_state(micro_model(), config), config, micro_views(), 6)
    totals = [metrics["loss/total"].item() for metrics in history]
    assert totals[-1] < 0.6 * totals[0]


def test_metrics_are_detached_scalars_or_numbers_under_their_agreed_names():
    config = micro_config()
    metrics = run(train_state(micro_model(), config), config, micro_views(), 1)[0]
    assert set(metrics) == METRICS
    for name, value in metrics.items():
        if name.startswith("schedule/"):
            assert isinstance(value, float)
        else:
            assert value.ndim == 0
            assert not value.requires_grad
    assert not non_finite(metrics)


def test_a_step_goes_on_from_a_copy_of_its_state_to_the_bit():
    config, views = micro_config(), micro_views()
    state = train_state(micro_model(), config)
    run(state, config, views, 2)
    resumed = train_state(copy.deepcopy(state.model), config)
    resumed.optimizer.load_state_dict(copy.deepcopy(state.optimizer.state_dict()))
    resumed.centers, resumed.step = state.centers, state.step
    run(state, config, views, 2)
    run(resumed, config, views, 2)
    expected, tensors = model_tensors(state.model), model_tensors(resumed.model)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert torch.equal(resumed.centers.video, state.centers.video)
    assert resumed.step == state.step == 4


def test_only_the_moving_average_changes_a_teacher():
    config = micro_config(optimizer=OptimizerConfig(video_momentum=1.0, audio_momentum=1.0))
    model = micro_model()
    before = model.video_teacher.norm.weight.clone(), model.video_teacher.cls_token.clone()
    run(train_state(model, config), config, micro_views(), 2)
    assert torch.equal(model.video_teacher.norm.weight, before[0])
    assert torch.equal(model.video_teacher.cls_token, before[1])


def test_autocast_keeps_the_losses_in_float32_and_close():
    config, views = micro_config(), micro_views()
    plain, cast = train_state(micro_model(), config), train_state(micro_model(), config)
    cast.model.load_state_dict(plain.model.state_dict())
    expected = run(plain, config, views, 1)[0]
    metrics = run(cast, config, views, 1, autocast_dtype=torch.bfloat16)[0]
    assert all(v.dtype == torch.float32 for name, v in metrics.items() if "loss" in name)
    torch.testing.assert_close(metrics["loss/total"], expected["loss/total"], rtol=0.02, atol=0.0)


def test_measures_join_the_metrics():
    def measure(output, centers, objective, epoch):
        return {"health/rows": torch.tensor(output.video_teacher_logits.shape[0])}

    config = micro_config()
    state = train_state(micro_model(), config)
    assert run(state, config, micro_views(), 1, measure=measure)[0]["health/rows"] == 4


def test_a_term_that_is_not_finite_is_named():
    config, views = micro_config(), micro_views()
    views.video_global[0, 0, 0, 0, 0] = float("nan")
    names = non_finite(run(train_state(micro_model(), config), config, views, 1)[0])
    assert "loss/reconstruction/video" in names
    assert "loss/reconstruction/audio" not in names


def test_float16_is_refused():
    config = micro_config()
    state = train_state(micro_model(), config)
    with pytest.raises(ValueError, match=r"autocast_dtype \(torch.float16\) must be"):
        run(state, config, micro_views(), 1, autocast_dtype=torch.float16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_step_does_not_wait_for_a_gpu(dtype):
    config, views = micro_config(), Views(*(view.cuda() for view in micro_views()))
    state = train_state(micro_model().cuda(), config)
    state.centers = Centers(*(center.cuda() for center in state.centers))
    run(state, config, views, 2, autocast_dtype=dtype)
    torch.cuda.set_sync_debug_mode("error")
    try:
        metrics = run(state, config, views, 1, autocast_dtype=dtype)[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not non_finite(metrics)


@pytest.mark.parametrize("refinement", ["mean", "softmax", "cross", "none"])
@pytest.mark.parametrize("teacher_view", ["global", "first_local"])
def test_every_setting_of_the_teachers_trains(refinement, teacher_view):
    objective = ObjectiveConfig(refinement=refinement, teacher_view=teacher_view)
    config = micro_config(objective=objective)
    state = train_state(micro_model(), config)
    assert not non_finite(run(state, config, micro_views(), 2)[-1])


@pytest.mark.parametrize(("audio_momentum", "stay_equal"), [(0.997, True), (0.99, False)])
def test_with_equal_momenta_two_teachers_of_shared_students_have_equal_blocks(
    audio_momentum, stay_equal
):
    optimizer = OptimizerConfig(warmup_epochs=0.0, audio_momentum=audio_momentum)
    config = micro_config("modality_agnostic_student", optimizer=optimizer)
    model = micro_model("modality_agnostic_student")
    run(train_state(model, config), config, micro_views(), 2)
    weights = (t.blocks[0].mlp.fc1.weight for t in (model.video_teacher, model.audio_teacher))
    assert torch.equal(*weights) == stay_equal


def test_schedules_depend_on_the_step_alone():
    schedule = step_schedule(50, micro_config(), total_steps=100, steps_per_epoch=10.0)
    assert schedule.epoch == 5.0
    assert schedule.learning_rate == pytest.approx(0.5e-3)
    assert schedule.video_momentum == pytest.approx(0.9985)
    assert schedule.audio_teacher_temperature == 0.07


def test_momenta_go_to_their_final_value():
    optimizer = OptimizerConfig(video_momentum=0.99, audio_momentum=0.9, final_momentum=0.98)
    config = micro_config(optimizer=optimizer)
    last = step_schedule(100, config, total_steps=100, steps_per_epoch=10.0)
    assert last.video_momentum == pytest.approx(0.98)
    assert last.audio_momentum == pytest.approx(0.98)
    assert step_schedule(0, config, 100, 10.0).audio_momentum == pytest.approx(0.9)


def test_the_model_compiles_to_one_graph():
    """In a process of its own, since the type checks of these tests cannot be compiled."""
    program = Path(__file__).with_name("compiled_model.py")
    result = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=200, check=False
    )
    assert result.returncode == 0, result.stderr

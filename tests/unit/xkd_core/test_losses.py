"""Facts about the objective; each loss is its formula again in NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.helpers.networks import micro_model, micro_views
from xkd_core.config import ObjectiveConfig, TemperatureConfig
from xkd_core.losses import (
    distillation_loss,
    initial_centers,
    losses,
    teacher_temperature,
    teacher_temperatures,
    update_centers,
)


def test_distillation_is_the_formula_in_float64():
    student = torch.randn(2, 3, 10, dtype=torch.float64)
    teacher, center = torch.randn(3, 10).double(), torch.randn(10).double()

    def log_softmax(logits):
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    target = np.exp(log_softmax((teacher.float().numpy() - center.numpy()) / 0.07))
    expected = -(target * log_softmax(student.float().numpy() / 0.1)).sum(axis=-1).mean()
    loss = distillation_loss(
        student, teacher, center, student_temperature=0.1, teacher_temperature=0.07
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_no_gradient_reaches_the_teacher():
    student, teacher = torch.randn(2, 3, 10, requires_grad=True), torch.randn(3, 10)
    teacher.requires_grad_()
    loss = distillation_loss(
        student, teacher, torch.zeros(10), student_temperature=0.1, teacher_temperature=0.07
    )
    loss.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_centers_move_a_tenth_of_the_way_to_the_batch():
    video, audio = torch.randn(4, 6), torch.randn(4, 6)
    centers = update_centers(initial_centers(6), video, audio, 0.9)
    centers = update_centers(centers, audio, video, 0.9)
    expected = 0.09 * video.mean(dim=0) + 0.1 * audio.mean(dim=0)
    torch.testing.assert_close(centers.video, expected)


def test_a_teacher_temperature_follows_its_epoch():
    warming = TemperatureConfig(start=0.04, end=0.06, warmup_epochs=30.0)
    assert teacher_temperature(warming, 29.5) == pytest.approx(0.06)
    assert teacher_temperature(warming, 0.5) == pytest.approx(0.04)


def test_the_total_is_the_weighted_mean_of_three_half_sums():
    output = micro_model()(micro_views())
    total, terms, _ = losses(
        output, initial_centers(96), ObjectiveConfig(), teacher_temperatures(ObjectiveConfig(), 0.0)
    )
    for name, first, second in (
        ("reconstruction", "video", "audio"),
        ("alignment", "student", "teacher"),
        ("distillation", "video_to_audio", "audio_to_video"),
    ):
        half_sum = 0.5 * (terms[f"loss/{name}/{first}"] + terms[f"loss/{name}/{second}"])
        torch.testing.assert_close(terms[f"loss/{name}"], half_sum)
    expected = (
        terms["loss/alignment"] + terms["loss/distillation"] + 5 * terms["loss/reconstruction"]
    ) / 7
    torch.testing.assert_close(total, expected)
    assert terms["loss/total"] is total
    objective = ObjectiveConfig(divide_by_weights=False)
    undivided, _, _ = losses(
        output, initial_centers(96), objective, teacher_temperatures(objective, 0.0)
    )
    torch.testing.assert_close(undivided, 7.0 * expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", [{}, {"mmd_bandwidth": "median"}, {"alignment": "coral"}])
def test_autocast_changes_no_loss_no_center_and_no_gradient(dtype, settings):
    output, objective = micro_model()(micro_views()), ObjectiveConfig(**settings)
    learned = (
        output.video_errors,
        output.audio_errors,
        output.video_student_logits,
        output.audio_student_logits,
    )

    def everything():
        total, terms, centers = losses(
            output, initial_centers(96), objective, teacher_temperatures(objective, 0.0)
        )
        gradients = torch.autograd.grad(total, learned, retain_graph=True)
        return [*terms.values(), *centers, *gradients]

    expected = everything()
    with torch.autocast("cpu", dtype=dtype):
        for ours, plain in zip(everything(), expected, strict=True):
            assert torch.equal(ours, plain)
            assert ours.dtype == torch.float32


def test_distillation_of_far_logits_is_exact():
    """At the paper's width a logit over the temperature reaches 60; half precision would round it.

    The mean of squares is 1, so a whole row can sit in one logit.
    """
    student = F.layer_norm(torch.randn(2, 3, 8192) ** 9, (8192,))
    teacher = F.layer_norm(torch.randn(3, 8192) ** 9, (8192,))
    temperatures = {"student_temperature": 0.1, "teacher_temperature": 0.07}
    targets = (teacher.double() / 0.07).softmax(dim=-1)
    expected = -(targets * (student.double() / 0.1).log_softmax(dim=-1)).sum(dim=-1).mean()
    assert expected > 60.0
    ours = distillation_loss(student, teacher, torch.zeros(8192), **temperatures)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)


def test_alignment_of_the_teachers_is_a_constant():
    output = micro_model()(micro_views())
    _, terms, _ = losses(
        output, initial_centers(96), ObjectiveConfig(), teacher_temperatures(ObjectiveConfig(), 0.0)
    )
    assert not terms["loss/alignment/teacher"].requires_grad
    assert terms["loss/alignment/student"].requires_grad


def test_distillation_from_video_uses_the_video_center_and_temperature():
    output = micro_model()(micro_views(num_audio_locals=2))
    objective = ObjectiveConfig(
        video_teacher_temperature=TemperatureConfig(start=0.2, end=0.2),
        audio_student_temperature=0.3,
    )
    centers = initial_centers(96)._replace(video=torch.randn(96))
    _, terms, _ = losses(output, centers, objective, teacher_temperatures(objective, 0.0))
    expected = distillation_loss(
        output.audio_student_logits,
        output.video_teacher_logits,
        centers.video,
        student_temperature=0.3,
        teacher_temperature=0.2,
    )
    assert torch.equal(terms["loss/distillation/video_to_audio"], expected)

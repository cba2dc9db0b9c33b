"""The objective: masked reconstruction, domain alignment and cross-modal distillation.

    L = (w_da L_da + w_kd L_kd + w_rec L_rec) / (w_da + w_kd + w_rec)

Each term is the mean of two. Each function is one formula; the distance of the alignment term is in
`alignment`. Everything is computed in at least float32, also under autocast.

Paper: XKD, arXiv:2211.13929; DINO, arXiv:2104.14294.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

from xkd_core.alignment import alignment_distance, gather_rows
from xkd_core.config import ObjectiveConfig, TemperatureConfig
from xkd_core.schedules import linear_by_epoch
from xkd_core.shapes import Float, Scalar, Tensor
from xkd_core.xkd import XKDOutput


class Centers(NamedTuple):
    """Running means of the teachers' logits; part of the state of a training."""

    video: Float[Tensor, " K"]
    audio: Float[Tensor, " K"]


class TeacherTemperatures(NamedTuple):
    """Temperatures of the two teachers at a step; see `teacher_temperatures`."""

    video: Scalar
    audio: Scalar


def initial_centers(output_width: int, device: torch.device | str = "cpu") -> Centers:
    """Returns the centers before the first step: zeros."""
    return Centers(
        torch.zeros(output_width, device=device), torch.zeros(output_width, device=device)
    )


def losses(
    output: XKDOutput,
    centers: Centers,
    objective: ObjectiveConfig,
    temperatures: TeacherTemperatures,
) -> tuple[Float[Tensor, ""], dict[str, Tensor], Centers]:
    """Returns the total, its terms by metric name, and the centers for the next step."""
    terms = {
        **_reconstruction_terms(output),
        **_alignment_terms(output, objective),
        **_distillation_terms(output, centers, objective, temperatures),
    }
    weights = {
        "loss/alignment": objective.alignment_weight,
        "loss/distillation": objective.distillation_weight,
        "loss/reconstruction": objective.reconstruction_weight,
    }
    weighted = [weight * terms[name] for name, weight in weights.items()]
    total = torch.stack(weighted).sum()
    if objective.divide_by_weights:
        total = total / sum(weights.values())
    new_centers = update_centers(
        centers, output.video_teacher_logits, output.audio_teacher_logits, objective.center_momentum
    )
    return total, {"loss/total": total, **terms}, new_centers


def distillation_loss(
    student_logits: Float[Tensor, "J B K"],
    teacher_logits: Float[Tensor, "B K"],
    center: Float[Tensor, " K"],
    *,
    student_temperature: float,
    teacher_temperature: Scalar,
) -> Float[Tensor, ""]:
    """Computes the cross-entropy of all student views to the centered, sharpened teacher.

        -sum_k q_k log p_k,   q = softmax((teacher - center) / teacher_temperature)
                              p = softmax(student / student_temperature)

    `teacher_logits` get no gradient.
    """
    centered = teacher_logits.detach().float() - center
    targets = F.softmax(centered / teacher_temperature, dim=-1)
    log_probs = F.log_softmax(student_logits.float() / student_temperature, dim=-1)
    return -(targets * log_probs).sum(dim=-1).mean()


def update_centers(
    centers: Centers,
    video_teacher_logits: Float[Tensor, "B K"],
    audio_teacher_logits: Float[Tensor, "B K"],
    momentum: float,
) -> Centers:
    """Moves the centers toward the mean over all workers, whose batches have equal sizes."""
    with torch.no_grad():
        means = torch.stack([video_teacher_logits.float(), audio_teacher_logits.float()]).mean(
            dim=1
        )
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(means)
            means = means / dist.get_world_size()
        moved = torch.stack([centers.video, centers.audio]).lerp(means, 1.0 - momentum)
    return Centers(moved[0], moved[1])


def teacher_temperatures(objective: ObjectiveConfig, epoch: float) -> TeacherTemperatures:
    """Returns the temperatures of both teachers in an epoch."""
    return TeacherTemperatures(
        video=teacher_temperature(objective.video_teacher_temperature, epoch),
        audio=teacher_temperature(objective.audio_teacher_temperature, epoch),
    )


def teacher_temperature(temperature: TemperatureConfig, epoch: float) -> float:
    """Returns the temperature of a teacher in an epoch."""
    return linear_by_epoch(
        epoch,
        start=temperature.start,
        end=temperature.end,
        warmup_epochs=temperature.warmup_epochs,
    )


def _reconstruction_terms(output: XKDOutput) -> dict[str, Tensor]:
    video, audio = output.video_errors.mean(), output.audio_errors.mean()
    return {
        "loss/reconstruction": 0.5 * (video + audio),
        "loss/reconstruction/video": video,
        "loss/reconstruction/audio": audio,
    }


def _alignment_terms(output: XKDOutput, objective: ObjectiveConfig) -> dict[str, Tensor]:
    def distance(video: Tensor, audio: Tensor) -> Tensor:
        if objective.alignment_over_workers:
            video, audio = gather_rows(video), gather_rows(audio)
        return alignment_distance(video, audio, objective)

    student = distance(
        output.video_student_logits.flatten(0, 1), output.audio_student_logits.flatten(0, 1)
    )
    with (
        torch.no_grad()
    ):  # a constant, but it halves the weight of the students' term, as published
        teacher = distance(output.video_teacher_logits, output.audio_teacher_logits)
    return {
        "loss/alignment": 0.5 * (student + teacher),
        "loss/alignment/student": student,
        "loss/alignment/teacher": teacher,
    }


def _distillation_terms(
    output: XKDOutput,
    centers: Centers,
    objective: ObjectiveConfig,
    temperatures: TeacherTemperatures,
) -> dict[str, Tensor]:
    video_to_audio = distillation_loss(
        output.audio_student_logits,
        output.video_teacher_logits,
        centers.video,
        student_temperature=objective.audio_student_temperature,
        teacher_temperature=temperatures.video,
    )
    audio_to_video = distillation_loss(
        output.video_student_logits,
        output.audio_teacher_logits,
        centers.audio,
        student_temperature=objective.video_student_temperature,
        teacher_temperature=temperatures.audio,
    )
    return {
        "loss/distillation": 0.5 * (video_to_audio + audio_to_video),
        "loss/distillation/video_to_audio": video_to_audio,
        "loss/distillation/audio_to_video": audio_to_video,
    }

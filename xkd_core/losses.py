"""The objective: masked reconstruction, domain alignment and cross-modal distillation.

    L = (w_da L_da + w_kd L_kd + w_rec L_rec) / (w_da + w_kd + w_rec)

Each term is the half sum of two, and each function is one formula. Everything here is computed in
float32 or better, under any autocast: distances between logits need it.

Paper: XKD, arXiv:2211.13929; MMD, Gretton et al. 2012; DINO, arXiv:2104.14294.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

from xkd_core.config import ObjectiveConfig, TemperatureConfig
from xkd_core.schedules import linear_by_epoch
from xkd_core.shapes import Bool, Float, Tensor
from xkd_core.xkd import XKDOutput

MIN_SQUARED_DISTANCE = 1e-30


class Centers(NamedTuple):
    """Running means of the teachers' logits; with the weights they are the state of training."""

    video: Float[Tensor, " K"]
    audio: Float[Tensor, " K"]


def initial_centers(output_width: int, device: torch.device | str = "cpu") -> Centers:
    """Centres before the first step."""
    return Centers(
        torch.zeros(output_width, device=device), torch.zeros(output_width, device=device)
    )


def losses(
    output: XKDOutput, centers: Centers, objective: ObjectiveConfig, epoch: float
) -> tuple[Float[Tensor, ""], dict[str, Tensor], Centers]:
    """The total, its terms by metric name, and the centres for the next step."""
    terms = {
        **_reconstruction_terms(output),
        **_alignment_terms(output, objective.mmd_gammas),
        **_distillation_terms(output, centers, objective, epoch),
    }
    weights = {
        "loss/alignment": objective.alignment_weight,
        "loss/distillation": objective.distillation_weight,
        "loss/reconstruction": objective.reconstruction_weight,
    }
    weighted = [weight * terms[name] for name, weight in weights.items()]
    total = torch.stack(weighted).sum() / sum(weights.values())
    new_centers = update_centers(
        centers, output.video_teacher_logits, output.audio_teacher_logits, objective.center_momentum
    )
    return total, {"loss/total": total, **terms}, new_centers


def reconstruction_loss(
    reconstruction: Float[Tensor, "B N P"],
    target: Float[Tensor, "B N P"],
    hidden: Bool[Tensor, "B N"],
) -> Float[Tensor, ""]:
    """Mean squared error of the hidden patches."""
    error = (reconstruction.float() - target.float()).square().mean(dim=-1)
    return (error * hidden).sum() / hidden.sum()


def mmd(
    x: Float[Tensor, "n K"], y: Float[Tensor, "m K"], gammas: Sequence[float]
) -> Float[Tensor, ""]:
    """Squared maximum mean discrepancy, with a sum of Gaussian kernels; biased, diagonal included.

        MMD(X, Y) = mean k(X, X) + mean k(Y, Y) - 2 mean k(X, Y)
        k(x, y) = sum over gammas of exp(-gamma |x - y|^2)

    Squared distances come from one product in float64: rows have a squared norm of thousands, and
    the largest gamma sees differences of a thousandth.
    """
    num_x = x.shape[0]
    with torch.autocast(x.device.type, enabled=False):
        rows = torch.cat([x, y]).double()
        squared_norms = rows.square().sum(dim=-1)
        distances = squared_norms[:, None] + squared_norms[None, :] - 2.0 * rows @ rows.T
        same = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        distances = distances.clamp_min(MIN_SQUARED_DISTANCE).masked_fill(same, 0.0)
        kernel = sum(
            (torch.exp(-gamma * distances) for gamma in gammas), torch.zeros_like(distances)
        )
        within_x, within_y = kernel[:num_x, :num_x].mean(), kernel[num_x:, num_x:].mean()
        return (within_x + within_y - 2.0 * kernel[:num_x, num_x:].mean()).float()


def distillation_loss(
    student_logits: Float[Tensor, "J B K"],
    teacher_logits: Float[Tensor, "B K"],
    center: Float[Tensor, " K"],
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Float[Tensor, ""]:
    """Cross-entropy of all student views against the centred, sharpened teacher.

    No gradient flows to `teacher_logits`.
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
    """Moves the centres towards the mean over all workers, whose batches are equally large."""
    with torch.no_grad():
        means = torch.stack([video_teacher_logits.float(), audio_teacher_logits.float()]).mean(
            dim=1
        )
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(means)
            means = means / dist.get_world_size()
        moved = torch.stack([centers.video, centers.audio]).lerp(means, 1.0 - momentum)
    return Centers(moved[0], moved[1])


def teacher_temperature(temperature: TemperatureConfig, epoch: float) -> float:
    """Temperature of a teacher in an epoch."""
    return linear_by_epoch(
        epoch,
        start=temperature.start,
        end=temperature.end,
        warmup_epochs=temperature.warmup_epochs,
    )


def _reconstruction_terms(output: XKDOutput) -> dict[str, Tensor]:
    video = reconstruction_loss(output.video_reconstruction, output.video_target, output.video_mask)
    audio = reconstruction_loss(output.audio_reconstruction, output.audio_target, output.audio_mask)
    return {
        "loss/reconstruction": 0.5 * (video + audio),
        "loss/reconstruction/video": video,
        "loss/reconstruction/audio": audio,
    }


def _alignment_terms(output: XKDOutput, gammas: Sequence[float]) -> dict[str, Tensor]:
    student = mmd(
        output.video_student_logits.flatten(0, 1), output.audio_student_logits.flatten(0, 1), gammas
    )
    with torch.no_grad():  # a constant, which still halves the student's weight, as published
        teacher = mmd(output.video_teacher_logits, output.audio_teacher_logits, gammas)
    return {
        "loss/alignment": 0.5 * (student + teacher),
        "loss/alignment/student": student,
        "loss/alignment/teacher": teacher,
    }


def _distillation_terms(
    output: XKDOutput, centers: Centers, objective: ObjectiveConfig, epoch: float
) -> dict[str, Tensor]:
    video_to_audio = distillation_loss(
        output.audio_student_logits,
        output.video_teacher_logits,
        centers.video,
        student_temperature=objective.audio_student_temperature,
        teacher_temperature=teacher_temperature(objective.video_teacher_temperature, epoch),
    )
    audio_to_video = distillation_loss(
        output.video_student_logits,
        output.audio_teacher_logits,
        centers.audio,
        student_temperature=objective.video_student_temperature,
        teacher_temperature=teacher_temperature(objective.audio_teacher_temperature, epoch),
    )
    return {
        "loss/distillation": 0.5 * (video_to_audio + audio_to_video),
        "loss/distillation/video_to_audio": video_to_audio,
        "loss/distillation/audio_to_video": audio_to_video,
    }

"""Signs of collapse, measured on what a training step computes anyway.

Distillation across modalities fails in known ways: all clips get one answer (rank and spread fall,
cosines within a modality rise to 1), targets become certain or empty (entropy), the students never
meet (cosine between modalities, MMD). Every measure is finite for any batch of finite outputs, one
clip included, because a training run stops at a number that is not.

Paper: XKD, arXiv:2211.13929; effective rank as in RankMe, arXiv:2210.02885.
"""

import torch
import torch.nn.functional as F

from xkd_core.alignment import mmd
from xkd_core.config import ObjectiveConfig
from xkd_core.losses import Centers, teacher_temperature
from xkd_core.shapes import Float, Tensor
from xkd_core.xkd import XKDOutput


@torch.no_grad()
def measure_health(
    output: XKDOutput, centers: Centers, objective: ObjectiveConfig, epoch: float
) -> dict[str, Tensor]:
    """Measures by metric name: on teachers' features and targets and on students' logits."""
    with torch.autocast(output.video_teacher_logits.device.type, enabled=False):
        video_logits, audio_logits = output.video_student_logits, output.audio_student_logits
        video = {
            **_measure_features(output.video_teacher_features, video_logits[0], centers.video),
            **_measure_targets(
                output.video_teacher_logits.float() - centers.video,
                audio_logits,
                teacher_temperature(objective.video_teacher_temperature, epoch),
                objective.audio_student_temperature,
            ),
        }
        audio = {
            **_measure_features(output.audio_teacher_features, audio_logits[0], centers.audio),
            **_measure_targets(
                output.audio_teacher_logits.float() - centers.audio,
                video_logits,
                teacher_temperature(objective.audio_teacher_temperature, epoch),
                objective.video_student_temperature,
            ),
        }
        between = {
            "cosine_between": mean_cosine_between(video_logits[0], audio_logits[0]),
            "mmd": mmd_without_constant(
                video_logits.flatten(0, 1), audio_logits.flatten(0, 1), objective
            ),
        }
    return {
        **{f"health/video/{name}": value for name, value in video.items()},
        **{f"health/audio/{name}": value for name, value in audio.items()},
        **{f"health/{name}": value for name, value in between.items()},
    }


def effective_rank(features: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Number of directions that are used: from 1, all rows parallel, to min(B, D).

    exp(-sum p log p), with p the singular values over their sum
    """
    # Numbers that are not finite are reported by the losses; here they would stop the solver.
    singular_values = torch.linalg.svdvals(features.float().nan_to_num())
    shares = singular_values / singular_values.sum().clamp(min=1e-12)
    return torch.special.entr(shares).sum().exp()


def feature_std(features: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Spread of the features' directions: from 0, all alike, to about 1, evenly on the sphere.

    The root of D times the mean deviation of a coordinate of unit vectors.
    """
    directions = F.normalize(features.float(), dim=-1)
    return directions.std(dim=0, correction=0).mean() * features.shape[-1] ** 0.5


def distribution_entropy(
    centered_logits: Float[Tensor, "B K"], temperature: float
) -> Float[Tensor, ""]:
    """Mean entropy of softmax(logits / temperature): from 0, certain, to log K, empty."""
    return (
        torch.special.entr(F.softmax(centered_logits.float() / temperature, dim=-1))
        .sum(dim=-1)
        .mean()
    )


def target_kl(
    centered_logits: Float[Tensor, "B K"],
    student_logits: Float[Tensor, "J B K"],
    *,
    teacher_temperature: float,
    student_temperature: float,
) -> Float[Tensor, ""]:
    """Mean divergence of students from their target: the distillation loss less its entropy."""
    target = F.log_softmax(centered_logits.float() / teacher_temperature, dim=-1)
    log_probs = F.log_softmax(student_logits.float() / student_temperature, dim=-1)
    return (target.exp() * (target - log_probs)).sum(dim=-1).mean()


def mean_cosine_within(features: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Mean cosine between different rows; 0 for a single row."""
    directions = F.normalize(features.float(), dim=-1)
    num_rows = len(directions)
    # |sum of unit vectors|^2 counts every ordered pair once, and each row with itself.
    pairs = directions.sum(dim=0).square().sum() - directions.square().sum()
    return pairs / max(num_rows * (num_rows - 1), 1)


def mean_cosine_between(a: Float[Tensor, "n D"], b: Float[Tensor, "m D"]) -> Float[Tensor, ""]:
    """Mean cosine between all rows of one set and all of the other."""
    return F.normalize(a.float(), dim=-1).mean(dim=0) @ F.normalize(b.float(), dim=-1).mean(dim=0)


def mmd_without_constant(
    x: Float[Tensor, "n K"], y: Float[Tensor, "m K"], objective: ObjectiveConfig
) -> Float[Tensor, ""]:
    """The biased MMD less what its diagonals add: with the paper's kernel 0 where no row is near.

    Of this worker's rows, whatever estimator or measure of alignment the objective has.
    """
    distance = mmd(
        x,
        y,
        objective.mmd_gammas,
        bandwidth=objective.mmd_bandwidth,
        unit_sphere=objective.mmd_unit_sphere,
    )
    return distance - len(objective.mmd_gammas) * (1.0 / len(x) + 1.0 / len(y))


def _measure_features(
    teacher_features: Float[Tensor, "B D"],
    student_logits: Float[Tensor, "B K"],
    center: Float[Tensor, " K"],
) -> dict[str, Tensor]:
    return {
        "effective_rank": effective_rank(teacher_features),
        "feature_std": feature_std(teacher_features),
        "cosine_within": mean_cosine_within(student_logits),
        "center_norm": center.norm(),
    }


def _measure_targets(
    centered_logits: Float[Tensor, "B K"],
    student_logits: Float[Tensor, "J B K"],
    teacher_temperature: float,
    student_temperature: float,
) -> dict[str, Tensor]:
    """What the teacher of one modality asks of the other's student, and how far that is."""
    return {
        "target_entropy": distribution_entropy(centered_logits, teacher_temperature),
        "target_kl": target_kl(
            centered_logits,
            student_logits,
            teacher_temperature=teacher_temperature,
            student_temperature=student_temperature,
        ),
    }

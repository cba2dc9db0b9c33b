"""Signs of collapse, measured on the outputs of a training step.

Distillation across modalities fails in known ways:

    targets do not tell clips apart       information falls; entropy is 0 (always the same output)
                                          or log K (uniform)
    all clips get the same features       rank and spread fall, cosines within a modality go to 1
    students stay apart                   low cosine between modalities, high MMD

Every measure is finite for any batch of finite outputs, including a single clip, because a training
stops at numbers that are not finite.

Paper: XKD, arXiv:2211.13929; effective rank as in RankMe, arXiv:2210.02885; information as in RIM,
Krause et al., NeurIPS 2010.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F

from xkd_core.alignment import mmd
from xkd_core.config import ObjectiveConfig
from xkd_core.losses import Centers, teacher_temperature
from xkd_core.shapes import Float, Tensor
from xkd_core.xkd import XKDOutput

MIN_CLIPS = 4
"""Smallest batch from which `target_information` is computed."""
_MIN_INFORMATION = 0.15
"""Information below which targets count as collapsed. Single records of healthy smoke runs go down
to 0.2; untrained heads without an output norm have 0.04, at most 0.13."""
_MAX_COSINE = 0.98
"""Mean cosine of a student's outputs above which they count as the same for all clips."""
_MIN_RANK = 1.5
"""Effective rank of a teacher's features below which they count as the same for all clips."""
_JUDGED_RECORDS = 3
"""Number of records whose mean is judged; a single batch is too noisy."""


@torch.no_grad()
def measure_health(
    output: XKDOutput, centers: Centers, objective: ObjectiveConfig, epoch: float
) -> dict[str, Tensor]:
    """Measures teachers' features and targets and students' logits, by metric name."""
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
    """Effective number of directions: from 1 (all rows parallel) to min(B, D).

        exp(-sum_i p_i log p_i)

    with p the singular values divided by their sum.
    """
    # The losses report numbers that are not finite; here they would make the solver raise.
    singular_values = torch.linalg.svdvals(features.float().nan_to_num())
    shares = singular_values / singular_values.sum().clamp(min=1e-12)
    return torch.special.entr(shares).sum().exp()


def feature_std(features: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Spread of the features' directions: from 0 (all equal) to about 1 (uniform on the sphere).

    Standard deviation of the coordinates of unit vectors, averaged, times sqrt(D).
    """
    directions = F.normalize(features.float(), dim=-1)
    return directions.std(dim=0, correction=0).mean() * features.shape[-1] ** 0.5


def distribution_entropy(
    centered_logits: Float[Tensor, "B K"], temperature: float
) -> Float[Tensor, ""]:
    """Mean entropy of softmax(logits / temperature): from 0 (one output) to log K (uniform)."""
    return (
        torch.special.entr(F.softmax(centered_logits.float() / temperature, dim=-1))
        .sum(dim=-1)
        .mean()
    )


def target_information(
    centered_logits: Float[Tensor, "B K"], temperature: float
) -> Float[Tensor, ""]:
    """Information of targets about the clip: from 0 (all equal) to 1 (certain and all different).

    Mutual information of clip and output as a share of its maximum; 0 for a single clip:

        (H(mean q) - mean H(q)) / log min(B, K)
    """
    targets = F.softmax(centered_logits.float() / temperature, dim=-1)
    information = (
        torch.special.entr(targets.mean(dim=0)).sum() - torch.special.entr(targets).sum(-1).mean()
    )
    return information / math.log(max(min(targets.shape), 2))


def target_kl(
    centered_logits: Float[Tensor, "B K"],
    student_logits: Float[Tensor, "J B K"],
    *,
    teacher_temperature: float,
    student_temperature: float,
) -> Float[Tensor, ""]:
    """Mean KL divergence of students from their targets: distillation loss minus target entropy."""
    target = F.log_softmax(centered_logits.float() / teacher_temperature, dim=-1)
    log_probs = F.log_softmax(student_logits.float() / student_temperature, dim=-1)
    return (target.exp() * (target - log_probs)).sum(dim=-1).mean()


def mean_cosine_within(features: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Mean cosine of different rows; 0 for a single row."""
    directions = F.normalize(features.float(), dim=-1)
    num_rows = len(directions)
    # |sum of unit vectors|^2 is the sum over ordered pairs, including each row with itself.
    pairs = directions.sum(dim=0).square().sum() - directions.square().sum()
    return pairs / max(num_rows * (num_rows - 1), 1)


def mean_cosine_between(a: Float[Tensor, "n D"], b: Float[Tensor, "m D"]) -> Float[Tensor, ""]:
    """Mean cosine of all pairs of a row of `a` and a row of `b`."""
    return F.normalize(a.float(), dim=-1).mean(dim=0) @ F.normalize(b.float(), dim=-1).mean(dim=0)


def mmd_without_constant(
    x: Float[Tensor, "n K"], y: Float[Tensor, "m K"], objective: ObjectiveConfig
) -> Float[Tensor, ""]:
    """Biased MMD minus the contribution of pairs of a row with itself; 0 if all rows are far apart.

    Computed on this worker's rows, whichever alignment the objective uses.
    """
    distance = mmd(
        x,
        y,
        objective.mmd_gammas,
        bandwidth=objective.mmd_bandwidth,
        unit_sphere=objective.mmd_unit_sphere,
    )
    return distance - len(objective.mmd_gammas) * (1.0 / len(x) + 1.0 / len(y))


def collapse_signs(numbers: Mapping[str, float]) -> list[str]:
    """Says in words what has collapsed, one sentence for each sign; none if healthy.

    Args:
        numbers: Measures by metric name, of one step or means over some; a modality without
            `target_information` (a batch below `MIN_CLIPS`) is not judged.
    """
    signs = []
    for modality in ("video", "audio"):
        prefix = f"health/{modality}/"
        measures = {
            name.removeprefix(prefix): value
            for name, value in numbers.items()
            if name.startswith(prefix)
        }
        if "target_information" in measures:
            signs += _signs(modality, measures)
    return signs


def _signs(modality: str, measures: Mapping[str, float]) -> list[str]:
    information, entropy = measures["target_information"], measures["target_entropy"]
    cosine, rank = measures["cosine_within"], measures["effective_rank"]
    signs = []
    if information < _MIN_INFORMATION:
        signs.append(
            f"{modality} targets hardly differ between clips "
            f"(information {information:.2g} < {_MIN_INFORMATION:g}, entropy {entropy:.2g})"
        )
    if cosine > _MAX_COSINE:
        signs.append(
            f"{modality} outputs are alike for all clips (cosine {cosine:.3g} > {_MAX_COSINE:g})"
        )
    if rank < _MIN_RANK:
        signs.append(
            f"{modality} features are alike for all clips (rank {rank:.3g} < {_MIN_RANK:g})"
        )
    return signs


class CollapseWatch:
    """Detects collapse from the mean of the last `_JUDGED_RECORDS` records.

    Args:
        records: `records` of an earlier watch to continue from.
    """

    def __init__(self, records: Iterable[Mapping[str, float]] = ()) -> None:
        self._records: deque[dict[str, float]] = deque(maxlen=_JUDGED_RECORDS)
        self.signs: list[str] = []
        """Current signs of collapse; empty while there are too few records."""
        for record in records:
            self.see(record)

    @property
    def records(self) -> tuple[dict[str, float], ...]:
        """The records that are judged, oldest first."""
        return tuple(self._records)

    def see(self, numbers: Mapping[str, float]) -> bool:
        """Adds a record of metrics; returns whether a collapse begins with it."""
        self._records.append({k: v for k, v in numbers.items() if k.startswith("health/")})
        if len(self._records) < _JUDGED_RECORDS:
            return False
        was_healthy = not self.signs
        names = set.intersection(*(set(record) for record in self._records))
        self.signs = collapse_signs(
            {name: sum(r[name] for r in self._records) / _JUDGED_RECORDS for name in names}
        )
        return was_healthy and bool(self.signs)


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
    """Measures a teacher's targets and the distance of the other modality's student from them."""
    information = {}
    if len(centered_logits) >= MIN_CLIPS:
        information["target_information"] = target_information(centered_logits, teacher_temperature)
    return {
        **information,
        "target_entropy": distribution_entropy(centered_logits, teacher_temperature),
        "target_kl": target_kl(
            centered_logits,
            student_logits,
            teacher_temperature=teacher_temperature,
            student_temperature=student_temperature,
        ),
    }

"""One optimisation step: forward, losses, backward, clip, AdamW, teachers, centres.

Nothing here waits for the device: what is measured on it stays there as a tensor, and whoever reads
it waits. A non-finite loss is therefore not caught here; `non_finite` names the metrics that are.

A batch may be taken in parts (`accumulation_steps`). Reconstruction, distillation, centres and
gradients are then those of the whole batch, since they are means over clips. The alignment is the
mean of the parts' MMDs: an MMD compares clips that are in memory together, so parts see fewer
pairs (workers see all, by `alignment_over_workers`), and its constant is that of a part.

Paper: XKD, arXiv:2211.13929.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from xkd_core.config import MethodConfig, ObjectiveConfig, OptimizerConfig
from xkd_core.ema import update_teachers
from xkd_core.losses import Centers, losses, teacher_temperature
from xkd_core.optim import (
    clip_each_gradient,
    clipped_parameters,
    set_learning_rate,
    total_gradient_norm,
)
from xkd_core.schedules import cosine
from xkd_core.shapes import Tensor
from xkd_core.sharding import later_sync
from xkd_core.views.views import Views, split_views
from xkd_core.xkd import XKD, XKDOutput

Measure = Callable[[XKDOutput, Centers, ObjectiveConfig, float], Mapping[str, Tensor]]


@dataclass
class TrainState:
    """Everything that a step changes."""

    model: XKD
    """The bare model."""
    forward: Callable[..., XKDOutput]
    """The model, or what wraps it: DistributedDataParallel, a compiled module."""
    optimizer: torch.optim.AdamW
    centers: Centers
    step: int = 0
    """Steps done so far."""


@dataclass(frozen=True)
class StepSchedule:
    """What the schedules give for one step."""

    epoch: float
    learning_rate: float
    video_momentum: float
    audio_momentum: float
    video_teacher_temperature: float
    audio_teacher_temperature: float

    def metrics(self) -> dict[str, float]:
        """The values by metric name; numbers, since no device computes them."""
        return {f"schedule/{name}": value for name, value in vars(self).items()}


def train_step(
    state: TrainState,
    views: Views,
    config: MethodConfig,
    *,
    total_steps: int,
    steps_per_epoch: float,
    autocast_dtype: torch.dtype | None = None,
    measure: Measure | None = None,
    accumulation_steps: int = 1,
    before_update: Callable[[], None] | None = None,
) -> dict[str, Tensor | float]:
    """Learns from one batch.

    Args:
        state: Changed in place.
        views: What students and teachers see.
        config: The method.
        total_steps: Steps of the whole run; schedules end there.
        steps_per_epoch: Steps of one epoch, a fraction where batches straddle epochs.
        autocast_dtype: `torch.bfloat16`, or None for float32 throughout.
        measure: Called with the output, the centres, the objective and the epoch, before the
            weights change; its measures join the metrics.
        accumulation_steps: Parts of equally many clips in which the batch is taken.
        before_update: Called once the gradients are there and before any weight changes.

    Returns:
        Metrics by name: what is measured as tensors without dimensions on the device, detached and
        not waited for; the schedule's values as numbers.

    Raises:
        ValueError: If `autocast_dtype` needs loss scaling, as float16 does.
    """
    if autocast_dtype not in (None, torch.bfloat16):
        raise ValueError(f"autocast_dtype ({autocast_dtype}) must be torch.bfloat16 or None")
    schedule = step_schedule(state.step, config, total_steps, steps_per_epoch)
    parts = []
    new_centers = []
    for part, part_views in enumerate(split_views(views, accumulation_steps), start=1):
        is_last = part == accumulation_steps
        with nullcontext() if is_last else later_sync(state.forward):
            metrics, centers = _backward(
                state,
                part_views,
                config.objective,
                schedule.epoch,
                autocast_dtype=autocast_dtype,
                measure=measure,
                share=1.0 / accumulation_steps,
            )
        parts.append(metrics)
        new_centers.append(centers)
    if before_update is not None:
        before_update()
    metrics = _mean_metrics(parts)
    metrics["grad_norm/total"] = _update_weights(state, config.optimizer, schedule)
    # Linear in the teachers' mean logits, so that the mean over parts is that of the whole batch.
    state.centers = Centers(*(torch.stack(c).mean(dim=0) for c in zip(*new_centers, strict=True)))
    state.step += 1
    return {**metrics, **schedule.metrics()}


def step_schedule(
    step: int, config: MethodConfig, total_steps: int, steps_per_epoch: float
) -> StepSchedule:
    """Learning rate, momenta and temperatures of a step, which depend on nothing else."""
    optimizer, objective = config.optimizer, config.objective
    epoch = step / steps_per_epoch
    return StepSchedule(
        epoch=epoch,
        learning_rate=cosine(
            step,
            start=optimizer.learning_rate,
            end=optimizer.final_learning_rate,
            total_steps=total_steps,
            warmup_steps=round(optimizer.warmup_epochs * steps_per_epoch),
        ),
        video_momentum=cosine(
            step,
            start=optimizer.video_momentum,
            end=optimizer.final_momentum,
            total_steps=total_steps,
        ),
        audio_momentum=cosine(
            step,
            start=optimizer.audio_momentum,
            end=optimizer.final_momentum,
            total_steps=total_steps,
        ),
        video_teacher_temperature=teacher_temperature(objective.video_teacher_temperature, epoch),
        audio_teacher_temperature=teacher_temperature(objective.audio_teacher_temperature, epoch),
    )


def non_finite(metrics: Mapping[str, Tensor | float]) -> list[str]:
    """Names of the metrics that are infinite or not a number; waits for the device."""
    return [name for name, value in metrics.items() if not math.isfinite(value)]


def _backward(
    state: TrainState,
    views: Views,
    objective: ObjectiveConfig,
    epoch: float,
    *,
    autocast_dtype: torch.dtype | None,
    measure: Measure | None,
    share: float,
) -> tuple[dict[str, Tensor], Centers]:
    """Adds `share` of the gradients of one part; returns its metrics and the centres after it."""
    device_type = views.video_global.device.type
    with torch.autocast(device_type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        output = state.forward(
            views, teacher_view=objective.teacher_view, refinement=objective.refinement
        )
    total, terms, new_centers = losses(output, state.centers, objective, epoch)
    metrics = {name: term.detach() for name, term in terms.items()}
    if measure is not None:
        metrics.update(measure(output, state.centers, objective, epoch))
    (total * share).backward()  # type: ignore[no-untyped-call]
    return metrics, new_centers


def _mean_metrics(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    if len(parts) == 1:
        return dict(parts[0])
    return {name: torch.stack([part[name] for part in parts]).mean(dim=0) for name in parts[0]}


def _update_weights(state: TrainState, config: OptimizerConfig, schedule: StepSchedule) -> Tensor:
    """Clips, steps and moves the teachers; returns the norm of the gradient before clipping."""
    gradient_norm = total_gradient_norm(state.model)
    clip_each_gradient(clipped_parameters(state.model), config.max_grad_norm)
    set_learning_rate(state.optimizer, schedule.learning_rate)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    update_teachers(state.model, schedule.video_momentum, schedule.audio_momentum)
    return gradient_norm

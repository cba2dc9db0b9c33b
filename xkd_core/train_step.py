"""One optimisation step: forward, losses, backward, clip, AdamW, teachers, centres.

Nothing here waits for the device: every metric stays a tensor, and whoever reads it waits. A
non-finite loss is therefore not caught here; `non_finite` names the metrics that are.

Paper: XKD, arXiv:2211.13929.
"""

import math
from collections.abc import Callable, Mapping
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
from xkd_core.views import Views
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

    def metrics(self) -> dict[str, Tensor]:
        """One tensor on the CPU for each value."""
        values = {f"schedule/{name}": value for name, value in vars(self).items()}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def train_step(
    state: TrainState,
    views: Views,
    config: MethodConfig,
    *,
    total_steps: int,
    steps_per_epoch: float,
    autocast_dtype: torch.dtype | None = None,
    measure: Measure | None = None,
) -> dict[str, Tensor]:
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

    Returns:
        Metrics by name: tensors without dimensions, detached and not waited for.

    Raises:
        ValueError: If `autocast_dtype` needs loss scaling, as float16 does.
    """
    if autocast_dtype not in (None, torch.bfloat16):
        raise ValueError(f"autocast_dtype ({autocast_dtype}) must be torch.bfloat16 or None")
    schedule = step_schedule(state.step, config, total_steps, steps_per_epoch)
    device_type = views.video_global.device.type
    with torch.autocast(device_type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        output = state.forward(
            views,
            teacher_view=config.objective.teacher_view,
            refinement=config.objective.refinement,
        )
    total, terms, new_centers = losses(output, state.centers, config.objective, schedule.epoch)
    metrics = {name: term.detach() for name, term in terms.items()}
    if measure is not None:
        metrics.update(measure(output, state.centers, config.objective, schedule.epoch))

    total.backward()  # type: ignore[no-untyped-call]
    metrics["grad_norm/total"] = _update_weights(state, config.optimizer, schedule)
    state.centers = new_centers
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


def non_finite(metrics: Mapping[str, Tensor]) -> list[str]:
    """Names of the metrics that are infinite or not a number; waits for the device."""
    return [name for name, value in metrics.items() if not math.isfinite(value.item())]


def _update_weights(state: TrainState, config: OptimizerConfig, schedule: StepSchedule) -> Tensor:
    """Clips, steps and moves the teachers; returns the norm of the gradient before clipping."""
    gradient_norm = total_gradient_norm(state.model)
    clip_each_gradient(clipped_parameters(state.model), config.max_grad_norm)
    set_learning_rate(state.optimizer, schedule.learning_rate)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    update_teachers(state.model, schedule.video_momentum, schedule.audio_momentum)
    return gradient_norm

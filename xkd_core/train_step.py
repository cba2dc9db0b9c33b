"""One optimization step: forward, losses, backward, clip, AdamW, teachers, centers.

A step never synchronizes with the device. Metrics stay there as tensors until they are read, so a
non-finite loss is not detected here; `non_finite` names such metrics later.

With `accumulation_steps` a batch is processed in parts. Reconstruction, distillation, centers and
their gradients equal those of the whole batch, because they are means over clips. The alignment is
the mean of the parts' MMDs: MMD compares clips that are in memory together, so parts have fewer
pairs. (Workers compare the clips of all workers, see `alignment_over_workers`.)

    batch  |  part 1: forward, backward  |  part 2: forward, backward + reduce  |  update

Paper: XKD, arXiv:2211.13929.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from xkd_core.config import MethodConfig, ObjectiveConfig
from xkd_core.ema import update_teachers
from xkd_core.losses import (
    Centers,
    TeacherTemperatures,
    losses,
    teacher_temperatures,
)
from xkd_core.optim import (
    clip_each_gradient,
    clipped_parameters,
    norms_of_gradients,
    set_learning_rate,
    total_norm,
)
from xkd_core.schedules import cosine
from xkd_core.shapes import Scalar, Tensor
from xkd_core.sharding import later_sync
from xkd_core.views.views import Views, split_views
from xkd_core.xkd import XKD, XKDOutput

Measure = Callable[[XKDOutput, Centers, ObjectiveConfig, float], Mapping[str, Tensor]]
See = Callable[[XKDOutput, Centers], Mapping[str, Tensor]]


@dataclass
class TrainState:
    """The state that a step changes."""

    model: XKD
    """The bare model."""
    forward: Callable[..., XKDOutput]
    """The model, possibly wrapped by DistributedDataParallel or compiled."""
    optimizer: torch.optim.AdamW
    centers: Centers
    step: int = 0
    """Number of completed steps."""


@dataclass(frozen=True)
class StepSchedule:
    """Values of all schedules at one step, as numbers; in a CUDA graph as tensors of its device."""

    epoch: float
    learning_rate: Scalar
    video_momentum: Scalar
    audio_momentum: Scalar
    video_teacher_temperature: Scalar
    audio_teacher_temperature: Scalar

    @property
    def temperatures(self) -> TeacherTemperatures:
        """Returns the temperatures of both teachers."""
        return TeacherTemperatures(self.video_teacher_temperature, self.audio_teacher_temperature)

    def metrics(self) -> dict[str, Scalar]:
        """Returns the values by metric name."""
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
    """Trains on one batch.

    Args:
        state: Modified in place.
        views: Input of students and teachers.
        config: Settings of the method.
        total_steps: Steps of the whole run, at which schedules end.
        steps_per_epoch: Steps of one epoch; fractional if batches cross epochs.
        autocast_dtype: `torch.bfloat16`, or None for float32.
        measure: Called with output, centers, objective and epoch before the update. The metrics
            that it returns are added to the result.
        accumulation_steps: Number of equal parts in which the batch is processed.
        before_update: Called after the backward pass, before any weight changes.

    Returns:
        Metrics by name. Measured values are detached scalar tensors on the device; values of the
        schedule are numbers.

    Raises:
        ValueError: If `autocast_dtype` needs loss scaling, as float16 does.
    """
    check_autocast_dtype(autocast_dtype)
    schedule = step_schedule(state.step, config, total_steps, steps_per_epoch)
    metrics = compute_step(
        state,
        views,
        config,
        schedule,
        autocast_dtype=autocast_dtype,
        see=None
        if measure is None
        else lambda output, centers: measure(output, centers, config.objective, schedule.epoch),
        accumulation_steps=accumulation_steps,
        before_update=before_update,
    )
    state.step += 1
    return {**metrics, **schedule.metrics()}


def check_autocast_dtype(autocast_dtype: torch.dtype | None) -> None:
    """Raises ValueError if a type needs loss scaling, as float16 does."""
    if autocast_dtype not in (None, torch.bfloat16):
        raise ValueError(f"autocast_dtype ({autocast_dtype}) must be torch.bfloat16 or None")


def compute_step(
    state: TrainState,
    views: Views,
    config: MethodConfig,
    schedule: StepSchedule,
    *,
    autocast_dtype: torch.dtype | None = None,
    see: See | None = None,
    accumulation_steps: int = 1,
    before_update: Callable[[], None] | None = None,
) -> dict[str, Tensor]:
    """Does a step's work on the device, all but the schedules and the count of steps.

    Args:
        state: Modified in place, except for `step`.
        views: Input of students and teachers.
        config: Settings of the method.
        schedule: Values of the schedules at this step.
        autocast_dtype: As in `train_step`.
        see: Called with the output and the centers of each part before the update. The metrics that
            it returns are added to the result.
        accumulation_steps: As in `train_step`.
        before_update: As in `train_step`.

    Returns:
        Measured metrics by name.
    """
    parts = []
    new_centers = []
    for part, part_views in enumerate(split_views(views, accumulation_steps), start=1):
        is_last = part == accumulation_steps
        with nullcontext() if is_last else later_sync(state.forward):
            metrics, centers = _backward(
                state,
                part_views,
                config.objective,
                schedule.temperatures,
                autocast_dtype=autocast_dtype,
                see=see,
                share=1.0 / accumulation_steps,
            )
        parts.append(metrics)
        new_centers.append(centers)
    if before_update is not None:
        before_update()
    metrics = mean_metrics(parts)
    metrics["grad_norm/total"] = _update_weights(state, config, schedule)
    # Centers are linear in the mean logits: the mean over parts equals that of the whole batch.
    state.centers = Centers(*(torch.stack(c).mean(dim=0) for c in zip(*new_centers, strict=True)))
    return metrics


def step_schedule(
    step: int, config: MethodConfig, total_steps: int, steps_per_epoch: float
) -> StepSchedule:
    """Computes learning rate, momenta and temperatures, which depend on the step alone."""
    optimizer, objective = config.optimizer, config.objective
    epoch = step / steps_per_epoch
    temperatures = teacher_temperatures(objective, epoch)
    is_frozen = objective.teacher == "frozen"
    return StepSchedule(
        epoch=epoch,
        learning_rate=cosine(
            step,
            start=optimizer.learning_rate,
            end=optimizer.final_learning_rate,
            total_steps=total_steps,
            warmup_steps=round(optimizer.warmup_epochs * steps_per_epoch),
        ),
        video_momentum=1.0
        if is_frozen
        else cosine(
            step,
            start=optimizer.video_momentum,
            end=optimizer.final_momentum,
            total_steps=total_steps,
        ),
        audio_momentum=1.0
        if is_frozen
        else cosine(
            step,
            start=optimizer.audio_momentum,
            end=optimizer.final_momentum,
            total_steps=total_steps,
        ),
        video_teacher_temperature=temperatures.video,
        audio_teacher_temperature=temperatures.audio,
    )


def non_finite(metrics: Mapping[str, Tensor | float]) -> list[str]:
    """Returns the names of metrics that are infinite or NaN; synchronizes with the device."""
    return [name for name, value in metrics.items() if not math.isfinite(value)]


def _backward(
    state: TrainState,
    views: Views,
    objective: ObjectiveConfig,
    temperatures: TeacherTemperatures,
    *,
    autocast_dtype: torch.dtype | None,
    see: See | None,
    share: float,
) -> tuple[dict[str, Tensor], Centers]:
    """Accumulates `share` of a part's gradients; returns its metrics and the updated centers."""
    device_type = views.video_global.device.type
    with torch.autocast(device_type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        output = state.forward(
            views, teacher_view=objective.teacher_view, refinement=objective.refinement
        )
    total, terms, new_centers = losses(output, state.centers, objective, temperatures)
    metrics = {name: term.detach() for name, term in terms.items()}
    if see is not None:
        metrics.update(see(output, state.centers))
    (total * share).backward()  # type: ignore[no-untyped-call]  # torch has no types here
    return metrics, new_centers


def mean_metrics(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Averages metrics over the parts of a batch."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: torch.stack([part[name] for part in parts]).mean(dim=0) for name in parts[0]}


def _update_weights(state: TrainState, config: MethodConfig, schedule: StepSchedule) -> Tensor:
    """Clips, updates students and teachers; returns the gradient norm before clipping."""
    norms = norms_of_gradients(state.model.parameters())
    clip_each_gradient(clipped_parameters(state.model), config.optimizer.max_grad_norm, norms)
    set_learning_rate(state.optimizer, schedule.learning_rate)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if config.objective.teacher == "moving":
        update_teachers(state.model, schedule.video_momentum, schedule.audio_momentum)
    return total_norm(norms)

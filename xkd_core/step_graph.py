"""A whole step as one CUDA graph: the host starts one operation instead of some four thousand.

A host needs 5 to 40 microseconds for each operation that it gives to a GPU. If a GPU's share of a
batch is small, this takes longer than the operations do. A graph is recorded once and replayed; it
reads and writes the same memory each time:

    given     views, learning rate, momenta, temperatures     copied into memory of the graph
    graph     forward, backward, clipping, AdamW, teachers    changes weights, moments, centers
    returned  metrics                                         copied out of memory of the graph

The first steps are taken one operation at a time, since compilation, libraries and the optimizer's
moments must be there before a graph is recorded.

Source: PyTorch, `torch.cuda.graph`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from xkd_core.config import MethodConfig
from xkd_core.losses import Centers
from xkd_core.optim import set_learning_rate
from xkd_core.shapes import Tensor
from xkd_core.train_step import (
    Measure,
    StepSchedule,
    TrainState,
    check_autocast_dtype,
    compute_step,
    mean_metrics,
    step_schedule,
    train_step,
)
from xkd_core.views.transfer import copy_together
from xkd_core.views.views import Views
from xkd_core.xkd import XKDOutput

EAGER_STEPS = 3
"""Steps before the graph is recorded."""
_SCHEDULED = (
    "learning_rate",
    "video_momentum",
    "audio_momentum",
    "video_teacher_temperature",
    "audio_teacher_temperature",
)


class StepGraph:
    """Takes steps as `train_step` does, from the fourth on by replaying a CUDA graph.

    Views must always have the same shapes, and nothing but these steps may replace the state's
    tensors. The state's model must be the whole model on one GPU, not one that is wrapped.

    Args:
        state: Modified in place.
        config: Settings of the method.
        autocast_dtype: As in `train_step`.
        accumulation_steps: As in `train_step`.

    Raises:
        ValueError: If `autocast_dtype` needs loss scaling, as float16 does.
    """

    def __init__(
        self,
        state: TrainState,
        config: MethodConfig,
        *,
        autocast_dtype: torch.dtype | None = None,
        accumulation_steps: int = 1,
    ) -> None:
        check_autocast_dtype(autocast_dtype)
        self._state, self._config = state, config
        self._options: dict[str, Any] = {
            "autocast_dtype": autocast_dtype,
            "accumulation_steps": accumulation_steps,
        }
        self._num_eager = 0
        self._recorded: _Recorded | None = None

    def step(
        self,
        views: Views,
        *,
        total_steps: int,
        steps_per_epoch: float,
        measure: Measure | None = None,
        before_update: Callable[[], None] | None = None,
    ) -> dict[str, Tensor | float]:
        """Trains on one batch; arguments and result are those of `train_step`.

        `before_update` is called before the whole step, which the host cannot interrupt.
        """
        state = self._state
        if self._num_eager < EAGER_STEPS:
            self._num_eager += 1
            return train_step(
                state,
                views,
                self._config,
                total_steps=total_steps,
                steps_per_epoch=steps_per_epoch,
                measure=measure,
                before_update=before_update,
                **self._options,
            )
        schedule = step_schedule(state.step, self._config, total_steps, steps_per_epoch)
        if self._recorded is None:
            self._recorded = _Recorded(state, views, self._config, schedule, self._options)
        if before_update is not None:
            before_update()
        metrics = self._recorded.replay(views, schedule, measure)
        set_learning_rate(state.optimizer, schedule.learning_rate)  # for checkpoints
        state.step += 1
        return {**metrics, **schedule.metrics()}


class _Recorded:
    """The graph of a step, and the memory through which numbers go in and out."""

    def __init__(
        self,
        state: TrainState,
        views: Views,
        config: MethodConfig,
        schedule: StepSchedule,
        options: Mapping[str, Any],
    ) -> None:
        self._state, self._config, self._options = state, config, options
        self._device = views.video_global.device
        self._views = Views(*(torch.empty_like(view) for view in views))
        # In float64: a momentum is near 1, and what it lacks is what counts.
        self._scheduled = torch.zeros(len(_SCHEDULED), dtype=torch.float64, device=self._device)
        self._schedule = schedule
        self._centers = state.centers = Centers(*(center.clone() for center in state.centers))
        self._names: list[str] = []
        self._values = torch.empty(0)
        self._outputs: list[XKDOutput] = []
        self._graph = record(self._step)

    def replay(
        self, views: Views, schedule: StepSchedule, measure: Measure | None
    ) -> dict[str, Tensor]:
        """Takes one step; the metrics are copies, which later steps leave as they are."""
        before = Centers(*(center.clone() for center in self._centers))
        torch._foreach_copy_(list(self._views), list(views))
        values = torch.tensor([getattr(schedule, name) for name in _SCHEDULED], dtype=torch.float64)
        (there,) = copy_together((values,), self._device)
        self._scheduled.copy_(there)
        self._graph.replay()
        metrics = dict(zip(self._names, self._values.clone().unbind(), strict=True))
        if measure is not None:
            measured = [
                measure(output, before, self._config.objective, schedule.epoch)
                for output in self._outputs
            ]
            metrics |= mean_metrics(measured)
        return metrics

    def _step(self) -> None:
        """What is recorded: a step whose numbers are read from and left in the graph's memory."""
        scheduled: dict[str, Any] = dict(zip(_SCHEDULED, self._scheduled.unbind(), strict=True))
        scheduled["learning_rate"] = scheduled["learning_rate"].float()  # as AdamW needs it
        self._outputs = []
        with _recordable(self._state.optimizer):
            metrics = compute_step(
                self._state,
                self._views,
                self._config,
                replace(self._schedule, **scheduled),
                see=self._keep,
                **self._options,
            )
        torch._foreach_copy_(list(self._centers), list(self._state.centers))
        self._state.centers = self._centers
        self._names = list(metrics)
        self._values = torch.stack(list(metrics.values()))

    def _keep(self, output: XKDOutput, _: Centers) -> Mapping[str, Tensor]:
        kept = (value.detach() for value in output)
        self._outputs.append(XKDOutput(*kept))
        return {}


def record(work: Callable[[], None]) -> Any:
    """Records what some work does to the current GPU, without doing it."""
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as that of the checkpoints, may use the GPU meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph


@contextmanager
def _recordable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Lets a GPU read the learning rate from its memory; the settings then are as before."""
    before = [dict(group) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group, settings in zip(optimizer.param_groups, before, strict=True):
            group.update(settings)

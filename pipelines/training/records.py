"""Records of steps: metrics averaged over workers, warnings, progress notes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from pipelines.meters import show_record
from pipelines.tracking.runs import WARNING_TAG
from pipelines.tracking.tracker import Tracker
from pipelines.training.throughput import MAX_WAIT, WAIT_REMEDY, SlowdownWatch
from xkd_core.health import CollapseWatch

_COLLAPSE_CAUSES = (
    "usual causes: temperatures, objective.center_momentum of 1, model.head.normalize_output off, "
    "alignment too weak, clips that are all alike (README, Health)"
)


@dataclass(frozen=True)
class StepLog:
    """Log of rank 0: MLflow, progress board, warnings."""

    run: str
    tracker: Tracker
    board: Any
    slowdown_watch: SlowdownWatch
    collapse_watch: CollapseWatch

    def step(self, numbers: Mapping[str, float], step: int, total_steps: int) -> None:
        """Logs the metrics of a step and the warnings that follow from them."""
        warnings = self.slowdown_watch.new_warnings(numbers, step)
        begins = self.collapse_watch.see(numbers)
        signs = self.collapse_watch.signs
        if begins:
            warnings["collapse"] = f"step {step}: collapse: {'; '.join(signs)}; {_COLLAPSE_CAUSES}"
        numbers = {**numbers, "health/collapsed": float(bool(signs))}
        self.tracker.log(numbers, step)
        show_record(numbers, step, total_steps, self.run)
        note = _note(numbers) + ("  collapsed" if signs else "")
        self.board.post.remote(step + 1, total_steps, note)
        for kind, text in warnings.items():
            self.tracker.tag(f"{WARNING_TAG}{kind}", text)
            self.board.warn.remote(text)


def reduce_metrics(
    metrics: Mapping[str, Tensor | float], waited_seconds: float
) -> tuple[dict[str, float], float]:
    """Averages metrics over the workers; also returns the longest wait for clips.

    Synchronizes once with the device and once with the workers. Waits are part of the same sum:

        worker 0 sends   [loss, grad_norm, ... | 0.5, 0  ]
        worker 1 sends   [loss, grad_norm, ... | 0,   3.0]
        sum              [ divided by 2        | maximum ]

    Metrics that are Python numbers are equal on all workers and returned as they are.
    """
    measured = {name: value for name, value in metrics.items() if isinstance(value, Tensor)}
    averages = torch.stack([value.float() for value in measured.values()])
    if distributed.is_initialized():
        waits = averages.new_zeros(distributed.get_world_size())
        waits[distributed.get_rank()] = waited_seconds
        sums = torch.cat([averages, waits])
        distributed.all_reduce(sums)
        sums[: len(averages)] /= distributed.get_world_size()
        values = sums.tolist()
        waited_seconds = max(values[len(averages) :])
    else:
        values = averages.tolist()
    numbers = {name: value for name, value in metrics.items() if not isinstance(value, Tensor)}
    return numbers | dict(zip(measured, values, strict=False)), waited_seconds


def _note(numbers: Mapping[str, float]) -> str:
    note = f"loss {numbers['loss/total']:.3f}"
    wait = numbers.get("time/data_wait_share", 0.0)
    note += f"  data wait {wait:.0%}"
    return note if wait <= MAX_WAIT else f"{note}, too much: {WAIT_REMEDY}"

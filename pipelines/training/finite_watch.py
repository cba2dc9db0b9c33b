"""Finds the first step with a loss or gradient that is not finite, without synchronizing.

Metrics are read only every few steps. Until then the device keeps, for each metric, the first step
at which it was infinite or NaN:

    step    loss/total   grad_norm/total     first bad steps on the device
    4       1.0          2.0                 never    never
    5       nan          2.0                 5        never
    6       nan          inf                 5        6
    read                                     -> step 5, loss/total
"""

from collections.abc import Mapping

import torch
from torch import Tensor, distributed

_WATCHED = ("loss/", "grad_norm/")
_NEVER = 2**62


class FiniteWatch:
    """Watches the metrics of every step; all workers must call `first` at the same steps."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._first_steps: Tensor | None = None

    def see(self, step: int, metrics: Mapping[str, Tensor | float]) -> None:
        """Adds the metrics of a step."""
        watched = {
            name: value
            for name, value in metrics.items()
            if name.startswith(_WATCHED) and isinstance(value, Tensor)
        }
        self._names = list(watched)
        values = torch.stack([value.detach().float() for value in watched.values()])
        steps = torch.where(values.isfinite(), _NEVER, step)
        if self._first_steps is not None:
            steps = torch.minimum(self._first_steps, steps)
        self._first_steps = steps

    def first(self) -> tuple[int, list[str]] | None:
        """Returns the first bad step of any worker and its bad metrics; synchronizes with them."""
        if self._first_steps is None:
            return None
        steps = self._first_steps.clone()
        if distributed.is_initialized():
            distributed.all_reduce(steps, distributed.ReduceOp.MIN)
        first = int(steps.min())
        if first == _NEVER:
            return None
        bad = (steps == first).tolist()
        return first, [name for name, is_bad in zip(self._names, bad, strict=True) if is_bad]

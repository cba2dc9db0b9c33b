"""Which step was the first whose loss or gradient is not finite, without waiting for the device.

Numbers are only read every few steps. Until then the device remembers, for each metric, the first
step at which it was infinite or not a number.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, distributed

_WATCHED = ("loss/", "grad_norm/")
_NEVER = 2**62


class FiniteWatch:
    """Sees the metrics of every step; all workers must read it at the same steps."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._first_steps: Tensor | None = None

    def see(self, step: int, metrics: Mapping[str, Tensor | float]) -> None:
        """Takes in the metrics of a step."""
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
        """The first bad step of any worker with the names of its bad metrics; waits for both."""
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

"""What the workers of a training decide together without waiting for each other.

Each worker says a few integers after every step, and all learn the largest of each one step
later: by then the exchange, which goes over the CPU's network and not the device, is long done.
So all act on a signal that reached one of them, at the same step.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed


class Agreement:
    """The largest of each integer over all workers, who must call its methods equally often."""

    def __init__(self) -> None:
        self._is_shared = distributed.is_initialized() and distributed.get_world_size() > 1
        self._group: Any = distributed.new_group(backend="gloo") if self._is_shared else None
        self._coming: tuple[torch.Tensor, distributed.Work] | None = None

    def exchange(self, values: Sequence[int]) -> list[int]:
        """Says this step's values and gives the last step's; with one worker, this step's."""
        if not self._is_shared:
            return list(values)
        before, self._coming = self._coming, self._begin(values)
        return [0] * len(values) if before is None else _received(before)

    def settle(self, values: Sequence[int]) -> list[int]:
        """Says values, waits for everybody and gives them; what was under way is dropped."""
        if not self._is_shared:
            return list(values)
        if self._coming is not None:
            _received(self._coming)
            self._coming = None
        return _received(self._begin(values))

    def _begin(self, values: Sequence[int]) -> tuple[torch.Tensor, distributed.Work]:
        tensor = torch.tensor(list(values), dtype=torch.int64)
        work = distributed.all_reduce(
            tensor, distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        assert work is not None
        return tensor, work


def _received(coming: tuple[torch.Tensor, distributed.Work]) -> list[int]:
    tensor, work = coming
    work.wait()
    return [int(value) for value in tensor.tolist()]

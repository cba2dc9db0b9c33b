"""Sharding of weights over workers (FSDP2), and delayed reduction of gradients.

A sharded parameter is a DTensor. In-place updates operate on `local_part`, because the tensors of
teachers and students are sharded the same way. Tensors are made `whole` before they are saved, so
checkpoints do not depend on the number of workers.

Source: FSDP2, `torch.distributed.fsdp.fully_shard`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from xkd_core.shapes import Float, Tensor


def shard(model: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Shards a model's parameters over all workers in place, with one group for each of `blocks`.

    Blocks must be called as a whole. All other parameters form one more group.
    """
    for block in blocks:
        fully_shard(block)
    fully_shard(model)


def local_part(tensor: Tensor) -> Tensor:
    """Returns this worker's part of a sharded tensor, and any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Returns the full tensor; all workers must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Shards a full tensor like `other`."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None
    )


def gradient_norms(gradients: Sequence[Tensor]) -> Float[Tensor, " n"]:
    """Returns the norm of each gradient over all its shards."""
    norms = torch.stack(torch._foreach_norm([local_part(gradient) for gradient in gradients]))
    first = gradients[0]
    if isinstance(first, DTensor):
        squares = norms.square()
        dist.all_reduce(squares, group=first.device_mesh.get_group())
        norms = squares.sqrt()
    return norms


def later_sync(forward: Any) -> AbstractContextManager[None]:
    """Context in which backward passes accumulate gradients without reducing them over workers."""
    if isinstance(forward, FSDPModule):
        return _without_reduction(forward)
    # DistributedDataParallel has no_sync, also when compiled; a bare module has nothing to reduce.
    without_sync = getattr(forward, "no_sync", None)
    return without_sync() if without_sync else nullcontext()


@contextmanager
def _without_reduction(model: FSDPModule) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def mapped_moments(state: dict[str, Any], function: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Returns an optimizer's `state_dict` with `function` applied to each tensor."""
    moments = {
        index: {
            name: function(value) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return {**state, "state": moments}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads the moments of a `state_dict` of full tensors, sharded like the parameters.

    Keeps the hyperparameters that the optimizer was built with.
    """
    parameters: list[nn.Parameter] = [
        parameter for group in optimizer.param_groups for parameter in group["params"]
    ]
    moments = {
        index: {
            name: cut_like(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    configured = [_hyperparameters(group) for group in optimizer.param_groups]
    optimizer.load_state_dict({**state, "state": moments})
    for group, values in zip(optimizer.param_groups, configured, strict=True):
        group.update(values)


def _hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}

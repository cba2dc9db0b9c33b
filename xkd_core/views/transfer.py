"""Copies many tensors to a device at once: the clips of a batch, or the parameters of its views.

Each copy from the host has a fixed cost, and a copy from memory that is not pinned waits for the
work that is queued on the device. The parameters of one batch are about a hundred tensors.
"""

import math
from collections.abc import Iterator
from typing import Any, TypeVar

import torch

from xkd_core.shapes import Tensor

_Tree = TypeVar("_Tree", bound=tuple[Any, ...])
_ALIGNMENT = 8
"""Bytes; the largest number that is taken along."""


def copy_together(tree: _Tree, device: torch.device) -> _Tree:
    """Copies the tensors of nested tuples from the CPU to a device, all at once.

        start   3 x int64     flip   3 x bool     ...
        |-----------------------|---|.....|-------------    one array of bytes, copied once;
        0                       24        32                dots fill up to the alignment

    On the device each tensor is a view of the copied bytes. Other values are kept. If the device is
    the CPU, the tree is returned as it is.
    """
    if device.type == "cpu":
        return tree
    tensors = list(_tensors(tree))
    sizes = [math.ceil(tensor.nbytes / _ALIGNMENT) * _ALIGNMENT for tensor in tensors]
    packed = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for part, tensor in zip(torch.split(packed, sizes), tensors, strict=True):
        _seen_as(tensor, part).copy_(tensor)
    parts = torch.split(packed.to(device, non_blocking=True), sizes)
    there = iter([_seen_as(tensor, part) for tensor, part in zip(tensors, parts, strict=True)])
    copied: _Tree = _replaced(tree, there)
    return copied


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple):
        for branch in tree:
            yield from _tensors(branch)


def _seen_as(like: Tensor, part: Tensor) -> Tensor:
    """Interprets bytes as a tensor with the type and shape of another."""
    return part[: like.nbytes].view(like.dtype).view(like.shape)


def _replaced(tree: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return next(tensors)
    if not isinstance(tree, tuple):
        return tree
    branches = [_replaced(branch, tensors) for branch in tree]
    return type(tree)(*branches) if hasattr(tree, "_fields") else tuple(branches)

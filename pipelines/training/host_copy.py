"""Copies of a device's tensors in host memory, made while the device computes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ready:
    """A point in a GPU's work."""

    device: torch.device
    event: torch.cuda.Event


def recorded_event(tensors: Mapping[str, Tensor]) -> Ready | None:
    """The point at which everything queued so far on the tensors' GPU is done; None on a CPU."""
    device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
    if device is None:
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types here
    event.record(torch.cuda.current_stream(device))
    return Ready(device, event)


class HostCopy:
    """Copies nested tensors to host memory, which it reuses the next time.

    Writing to new memory takes several times as long as the copy.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    def take(self, tree: Any, ready: Ready | None) -> Any:
        """Copies on a stream of its own once `ready` is reached; returns when the copy is complete.

        training's stream   step k | forward and backward k+1 ....... | update k+1
        this stream                | copy .............. |            waits for the copy
        """
        earlier, self._buffers = iter(self._buffers), []

        def copy(tensor: Tensor) -> Tensor:
            buffer = next(earlier, None)
            if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers.append(buffer)
            return buffer.copy_(tensor.detach(), non_blocking=True)

        if ready is None:
            return map_tensors(tree, copy)
        # This thread's current device is the first one, whichever the training is on.
        stream = torch.cuda.Stream(ready.device)  # type: ignore[no-untyped-call]  # torch has no types here
        with torch.cuda.stream(stream):
            stream.wait_event(ready.event)
            result = map_tensors(tree, copy)
        stream.synchronize()
        return result


def map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Applies a function to each tensor of nested dictionaries, lists and tuples."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(value, function) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(value, function) for value in tree)
    return tree

"""A device that any machine has: it computes on the CPU and obeys the rules of a GPU.

Within `pretend_device`, `torch.device("meta")` holds real numbers, and whatever a GPU forbids or
has to wait for raises here or is recorded:

    mixing      an operation on tensors of both devices raises, as on a GPU (numbers of no
                dimension aside, which an elementwise operation takes)
    reading     `item`, `tolist`, `if tensor`, `nonzero`, a boolean index, a copy to the host
    blocking    a copy from the host that is not `non_blocking`, also one that PyTorch makes by
                itself: for an index on the host, a scalar in `torch.where`

The last two raise unless they are within `device.allowed()`, and are counted in `device.reads` and
`device.copies`.
"""

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
READS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "_unique2",
    "unique_dim",
}
GIVES_NUMBERS = {"_local_scalar_dense", "equal", "is_nonzero"}
WITHOUT_HOST_NUMBERS = {"where", "stack", "cat", "index_select", "gather"}
"""Operations that a GPU refuses on a number of the host, or copies it for, and waits."""


class DeviceError(AssertionError):
    """Something that fails on a GPU, or makes it wait."""


class _OnDevice(torch.Tensor):
    """A tensor of the device, whose numbers lie in `numbers`, on the CPU."""

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> "_OnDevice":
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=DEVICE,
        )
        wrapper.numbers = numbers
        return wrapper

    def __repr__(self) -> str:
        return f"on_device({self.numbers!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise DeviceError("numpy of a tensor on the device")

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if PretendDevice.active is None:
            raise DeviceError(f"{func} outside of pretend_device")
        return PretendDevice.active.__torch_dispatch__(func, types, args, kwargs)


class PretendDevice(TorchDispatchMode):
    """The rules; see the module."""

    active: "PretendDevice | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.copies: list[str] = []
        self._thread = threading.get_ident()
        self._allowances = 0

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Within it, waiting for the device is no fault."""
        self._allowances += 1
        try:
            yield
        finally:
            self._allowances -= 1

    def allowing(self, function: Any) -> Any:
        """A function that may wait for the device."""

        @wraps(function)
        def allowed(*args: Any, **kwargs: Any) -> Any:
            with self.allowed():
                return function(*args, **kwargs)

        return allowed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if torch.is_tensor(leaf)]
        here = [tensor for tensor in tensors if isinstance(tensor, _OnDevice)]
        name = func.overloadpacket.__name__
        if lost := [tensor for tensor in tensors if tensor.is_meta and not _is_here(tensor)]:
            # PyTorch made it of Python numbers, which a GPU waits for; here they are gone.
            raise DeviceError(f"{func}: copied from the host, {_described(lost[0])}")
        target = kwargs.get("device")
        goes_here = bool(here) if target is None else torch.device(target).type == DEVICE.type
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        if name == "copy_":
            self._check_copy(func, args[1], _is_here(args[0]), args[2:] == (True,))
        elif name == "_to_copy":
            self._check_copy(func, args[0], goes_here, kwargs.get("non_blocking", False))
        elif here:
            host = [tensor for tensor in tensors if not isinstance(tensor, _OnDevice)]
            self._check(func, name, here[0], host, args)
        with _disable_current_modes():
            out = func(*tree_map(_numbers, args), **tree_map(_numbers, kwargs))
        if not goes_here or name in GIVES_NUMBERS:
            return out
        out = tree_map(lambda leaf: _OnDevice(leaf) if torch.is_tensor(leaf) else leaf, out)
        return return_and_correct_aliasing(func, args, kwargs, out) if here else out

    def _check_copy(self, func: Any, source: Any, to_here: bool, non_blocking: bool) -> None:
        what = f"{func} of {_described(source)}"
        if _is_here(source) and not to_here:
            self._waits(self.reads, f"{what} to the host")
        elif to_here and not _is_here(source):
            self.copies.append(what)
            if not non_blocking:
                self._waits([], f"{what} from the host")

    def _check(self, func: Any, name: str, first: Any, host: Any, args: Any) -> None:
        is_indexing = name in {"index", "index_put_", "_index_put_impl_"}
        if name in READS or (is_indexing and _has_mask(args[1])):
            self._waits(self.reads, f"{func} of {_described(first)}")
        for tensor in host:
            what = f"{func} mixes {_described(first)} with {_described(tensor)} on the host"
            if is_indexing:
                self._waits(self.copies, what)
            elif tensor.ndim or name in WITHOUT_HOST_NUMBERS:
                raise DeviceError(what)

    def _waits(self, counted: list[str], what: str) -> None:
        counted.append(what)
        if not self._allowances and threading.get_ident() == self._thread:
            raise DeviceError(f"waits for the device: {what}")


def _numbers(leaf: Any) -> Any:
    return leaf.numbers if isinstance(leaf, _OnDevice) else leaf


def _is_here(tensor: Any) -> bool:
    return isinstance(tensor, _OnDevice)


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


def _described(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


@contextmanager
def pretend_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendDevice]:
    """Makes `torch.device("meta")` a device with numbers; what lives on it ends with it."""
    autocast = torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda kind, **options: autocast(kind.replace("meta", "cpu"), **options)
    )
    optimizers = importlib.import_module("torch.optim.optimizer")
    fused = "_get_fused_kernels_supported_devices"
    monkeypatch.setattr(optimizers, fused, lambda: ["cpu", DEVICE.type])
    with PretendDevice() as device:
        PretendDevice.active = device
        yield device
        PretendDevice.active = None

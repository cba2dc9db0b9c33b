"""Methods of a module that can each be compiled as one graph, as whole blocks are.

Between the blocks a step does much work on large tensors that is bound by memory: it cuts clips
into patches, puts tokens in order, compares predictions with clips. Written operation by operation,
each reads and writes the tensors again. Such a method is marked with `region`:

    class Decoder(nn.Module):
        @region
        def _embed(self, tokens, restore): ...

It runs as it is written until `compile_regions` names a backend for its module.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_BACKEND = "_region_backend"


def region(
    method: Callable[Concatenate[Module, Arguments], Result],
) -> Callable[Concatenate[Module, Arguments], Result]:
    """Marks a method whose work can be one graph."""

    @wraps(method)
    def run(self: Module, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        backend = getattr(self, _BACKEND, None)
        chosen = method if backend is None else _compiled(method, backend)
        return chosen(self, *args, **kwargs)

    return run


def compile_regions(model: nn.Module, backend: str) -> None:
    """Compiles the marked methods of a module and of all modules in it, in place."""
    for module in model.modules():
        setattr(module, _BACKEND, backend)


@lru_cache(maxsize=64)
def _compiled(method: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """One for all modules of a class: a bound method would keep the module that was copied."""
    return torch.compile(method, backend=backend, fullgraph=True, dynamic=False)

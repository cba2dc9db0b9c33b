"""Compiles transformer blocks one by one, which takes seconds where a whole model takes minutes.

Blocks of one width share their code, so that two dozen blocks are compiled once for each length of
a sequence. Each must be one graph; anything else is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from xkd_core.xkd import XKD

_SHAPES = 64
"""Compiled forms of a block: lengths of sequences, with and without gradient, two widths."""


def compile_blocks(model: XKD, backend: str = "inductor") -> None:
    """Compiles the blocks of students, decoders and teachers in place; names stay as they are."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SHAPES)
    for block in (*model.learning_blocks(), *model.teaching_blocks()):
        block.compile(backend=backend, fullgraph=True, dynamic=False)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Runs compiled blocks as they are written: for few batches of other sizes than in training."""
    with torch.compiler.set_stance("force_eager"):
        yield

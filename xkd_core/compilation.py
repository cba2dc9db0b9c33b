"""Compiles a model in parts, which takes seconds where a whole model takes minutes.

The parts are its transformer blocks, and the methods between them that are marked as `region`.
Blocks of one width share their code, so that two dozen blocks are compiled once for each length of
a sequence. Each part must be one graph; anything else is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from xkd_core.regions import compile_regions
from xkd_core.xkd import XKD

_SHAPES = 64
"""Compiled forms of a part: lengths of sequences, with and without gradient, two widths."""


def compile_blocks(model: XKD, backend: str = "inductor") -> None:
    """Compiles students, decoders and teachers in place, part by part; names stay as they are."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SHAPES)
    for block in (*model.learning_blocks(), *model.teaching_blocks()):
        block.compile(backend=backend, fullgraph=True, dynamic=False)
    compile_regions(model, backend)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Runs compiled parts as they are written: for few batches of other sizes than in training."""
    with torch.compiler.set_stance("force_eager"):
        yield

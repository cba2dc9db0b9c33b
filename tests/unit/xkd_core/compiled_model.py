"""Compares a compiled model and compiled blocks with the plain model; a program that a test starts.

Tracing fails unless everything is one graph; no code is generated.
"""

import copy

import torch
from torch._dynamo.utils import counters

from tests.helpers.networks import micro_config, micro_views
from xkd_core.compilation import compile_blocks, uncompiled
from xkd_core.config import TransformerConfig
from xkd_core.losses import initial_centers, losses, teacher_temperatures
from xkd_core.xkd import XKD, build_xkd


def main() -> None:
    torch.manual_seed(0)
    settings = micro_config()
    shallow = {name: getattr(settings.model, name).model_dump() for name in ("encoder", "decoder")}
    config = settings.model.model_copy(
        update={
            name: TransformerConfig(**values | {"depth": 1}) for name, values in shallow.items()
        }
    )
    model, views, objective = build_xkd(config), micro_views(), settings.objective
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    in_blocks = copy.deepcopy(model)
    compile_blocks(in_blocks, backend="eager")
    gradients = []
    for own, forward in ((model, model), (model, compiled), (in_blocks, in_blocks)):
        own.zero_grad()
        losses(
            forward(views), initial_centers(96), objective, teacher_temperatures(objective, 0.0)
        )[0].backward()
        gradients.append([p.grad.clone() for p in own.parameters() if p.grad is not None])
    for plain, *ours in zip(*gradients, strict=True):
        for gradient in ours:
            torch.testing.assert_close(gradient, plain, rtol=1e-4, atol=1e-5)
    check_scoring_compiles_nothing(in_blocks)


def check_scoring_compiles_nothing(in_blocks: XKD) -> None:
    """Batches of other sizes, as a scoring has them; outside of it they are compiled."""

    def compiled_graphs() -> int:
        return counters["stats"]["unique_graphs"]

    clips = micro_views(num_clips=7).video_global
    before = compiled_graphs()
    with torch.no_grad(), uncompiled():
        embeddings = in_blocks.video_teacher.embed(clips)
    assert compiled_graphs() == before
    with torch.no_grad():
        torch.testing.assert_close(in_blocks.video_teacher.embed(clips), embeddings)
    assert compiled_graphs() > before


if __name__ == "__main__":
    main()

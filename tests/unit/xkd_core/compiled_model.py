"""Compares a compiled model and compiled blocks with the plain model; a program that a test starts.

Tracing fails unless everything is one graph; no code is generated.
"""

import copy

import torch

from tests.helpers.networks import micro_config, micro_model, micro_views
from xkd_core.compilation import compile_blocks
from xkd_core.losses import initial_centers, losses, teacher_temperatures


def main() -> None:
    torch.manual_seed(0)
    model, views, objective = micro_model(), micro_views(), micro_config().objective
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


if __name__ == "__main__":
    main()

"""Compares the compiled model with the plain one; a program that a test starts.

Tracing fails unless everything is one graph; no code is generated.
"""

import torch

from tests.helpers.networks import micro_config, micro_model, micro_views
from xkd_core.losses import initial_centers, losses


def main() -> None:
    torch.manual_seed(0)
    model, views, objective = micro_model(), micro_views(), micro_config().objective
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    gradients = []
    for forward in (model, compiled):
        model.zero_grad()
        losses(forward(views), initial_centers(96), objective, 0.0)[0].backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    main()

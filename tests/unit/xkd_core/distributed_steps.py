"""Two training steps, and alignment by itself, as one of several workers (`parallel_steps.py`)."""

import torch
from torch import Tensor

from tests.helpers.networks import micro_config, micro_model, micro_views, train_state
from xkd_core.alignment import alignment_distance, gather_rows
from xkd_core.config import ObjectiveConfig, OptimizerConfig
from xkd_core.train_step import train_step
from xkd_core.views.views import Views
from xkd_core.xkd import model_tensors

NUM_CLIPS = 4
NUM_ROWS = 8
ALIGNMENTS = {
    "paper": {"mmd_gammas": (0.01, 0.1)},
    "median": {"mmd_bandwidth": "median"},
    "unit_sphere": {"mmd_unit_sphere": True},
    "unbiased": {"mmd_bandwidth": "median", "mmd_unbiased": True},
    "coral": {"alignment": "coral"},
}


def run_steps(rank: int, num_workers: int, wrap) -> dict[str, Tensor]:
    """Weights and centres after two steps on a worker's share of one batch."""
    config = micro_config(
        # Rows at any distance pull on each other, so the gradient of MMD is not all but 0.
        objective=ObjectiveConfig(mmd_bandwidth="median"),
        # With a large eps AdamW does not turn the rounding of a tiny gradient into a whole step.
        optimizer=OptimizerConfig(warmup_epochs=0.0, learning_rate=0.1, eps=1.0),
    )
    torch.manual_seed(0)
    views, model = micro_views(NUM_CLIPS), micro_model()
    state = train_state(model, config)
    state.forward = wrap(model)
    for _ in range(2):
        train_step(
            state, share_of(views, rank, num_workers), config, total_steps=9, steps_per_epoch=3.0
        )
    centers = {f"center.{name}": center for name, center in state.centers._asdict().items()}
    return {**model_tensors(model), **centers}


def run_alignment(rank: int, num_workers: int) -> dict[str, Tensor]:
    """Each distance between all workers' rows, and its gradient as DDP would average it.

    Also the value without asking the others.
    """
    torch.manual_seed(0)
    mine = slice(rank * NUM_ROWS // num_workers, (rank + 1) * NUM_ROWS // num_workers)
    x, y = (rows[mine] for rows in torch.randn(2, NUM_ROWS, 16))
    result = {}
    for name, settings in ALIGNMENTS.items():
        objective = ObjectiveConfig(**settings)
        own = x.clone().requires_grad_()
        distance = alignment_distance(gather_rows(own), gather_rows(y), objective)
        (gradient,) = torch.autograd.grad(distance, own)
        result[f"value.{name}"] = distance.detach()
        result[f"gradient.{name}"] = gradient / num_workers
        result[f"own.{name}"] = alignment_distance(x, y, objective)
    return result


def share_of(views: Views, rank: int, num_workers: int) -> Views:
    """The clips of one worker; they are on the second axis of local views."""
    mine = slice(rank * NUM_CLIPS // num_workers, (rank + 1) * NUM_CLIPS // num_workers)
    return Views(
        *(
            tensor[:, mine] if name.endswith("_locals") else tensor[mine]
            for name, tensor in views._asdict().items()
        )
    )

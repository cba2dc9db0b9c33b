"""Training steps in every way to use several devices, as one of two workers.

A program that a test starts. Arguments: rank, a file to meet at, a folder for the results: those of
each way by rank 0 and those of `distributed_steps.py` by both.
"""

import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.helpers.networks import micro_config, micro_model, micro_views, train_state
from tests.unit.xkd_core import distributed_steps
from xkd_core.config import ObjectiveConfig, OptimizerConfig
from xkd_core.losses import Centers
from xkd_core.sharding import load_optimizer_state, mapped_moments, shard, whole
from xkd_core.train_step import TrainState, train_step
from xkd_core.transformer import checkpoint_activations
from xkd_core.views.views import split_views
from xkd_core.xkd import load_model_tensors, model_tensors

NUM_CLIPS = 8
WAYS = {
    "ddp": {"wrap": "ddp"},
    "ddp, two parts": {"wrap": "ddp", "accumulation_steps": 2, "is_aligned": False},
    "fsdp": {"wrap": "fsdp"},
    "fsdp, shared blocks": {"wrap": "fsdp", "variant": "modality_agnostic_teacher_student"},
    "fsdp, two parts, recomputed": {
        "wrap": "fsdp",
        "accumulation_steps": 2,
        "is_aligned": False,
        "recompute": True,
    },
    "fsdp, loaded between": {"wrap": "fsdp", "reload": True},
}


def main(rank: int, meeting_file: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=2)
    results = {}
    for name, way in WAYS.items():
        for key, tensor in run_steps(rank, 2, **way).items():
            results[f"{name}: {key}"] = tensor.contiguous()
    if rank == 0:
        save_file(results, f"{folder}/ways")
    steps = distributed_steps.run_steps(rank, 2, DistributedDataParallel)
    save_file({**steps, **distributed_steps.run_alignment(rank, 2)}, f"{folder}/{rank}")
    dist.destroy_process_group()


def run_steps(
    rank: int,
    num_workers: int,
    wrap: str = "none",
    *,
    variant: str = "modality_specific",
    accumulation_steps: int = 1,
    is_aligned: bool = True,
    recompute: bool = False,
    reload: bool = False,
) -> dict[str, Tensor]:
    """Losses, gradient norms, weights, moments and centres of three steps on one batch."""
    config = micro_config(
        variant,
        # MMD compares the clips of all workers, but of one part: of parts it gives another mean.
        objective=ObjectiveConfig() if is_aligned else ObjectiveConfig(alignment_weight=0.0),
        # With a large eps AdamW does not turn the rounding of a tiny gradient into a whole step.
        optimizer=OptimizerConfig(warmup_epochs=0.0, learning_rate=0.1, eps=1.0),
    )
    torch.manual_seed(0)
    views = micro_views(NUM_CLIPS)
    state = build(config, wrap, recompute)
    curve = []
    for step in range(3):
        if reload and step == 2:
            state = reloaded(state, config)
        metrics = train_step(
            state,
            split_views(views, num_workers)[rank],
            config,
            total_steps=9,
            steps_per_epoch=3.0,
            accumulation_steps=accumulation_steps,
        )
        curve.append(
            torch.stack([mean(metrics[name]) for name in ("loss/total", "loss/distillation")])
        )
        curve.append(metrics["grad_norm/total"].reshape(1))
    moments = mapped_moments(state.optimizer.state_dict(), whole)["state"]
    return {
        "curve": torch.cat(curve),
        **{f"moment.{index}": values["exp_avg"] for index, values in moments.items()},
        **{name: whole(tensor) for name, tensor in model_tensors(state.model).items()},
        **{f"center.{name}": center for name, center in state.centers._asdict().items()},
    }


def mean(value: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value


def build(config, wrap: str, recompute: bool) -> TrainState:
    model = micro_model(config.model.variant)
    if recompute:
        for block in model.learning_blocks():
            checkpoint_activations(block)
    if wrap == "fsdp":
        shard(model, [*model.learning_blocks(), *model.teaching_blocks()])
    state = train_state(model, config)
    if wrap == "ddp":
        state.forward = DistributedDataParallel(model)
    return state


def reloaded(state: TrainState, config) -> TrainState:
    """Another sharded model that goes on from what a checkpoint would hold."""
    tensors = {name: whole(tensor) for name, tensor in model_tensors(state.model).items()}
    moments = mapped_moments(state.optimizer.state_dict(), whole)
    fresh = build(config, "fsdp", False)
    load_model_tensors(fresh.model, tensors)
    load_optimizer_state(fresh.optimizer, moments)
    fresh.centers, fresh.step = Centers(*state.centers), state.step
    return fresh


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])

"""State of a training in a worker: build, wrap for several devices, save, load.

Checkpoints depend neither on the number of workers nor on how weights are sharded.

Method: XKD, arXiv:2211.13929, sections 3 and 4.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import torch
from ray import train
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import get_device, prepare_model
from safetensors.torch import load_file
from torch import Tensor

from pipelines.config.pretrain import PretrainConfig
from pipelines.evaluation.rungs import rung_at
from pipelines.models.checkpoints import (
    AUDIO_CENTER,
    VIDEO_CENTER,
    check_dataset,
    find_checkpoint,
    load_optimizer_state,
    load_tensors,
    newest_checkpoint,
    read_info,
    remove_other_checkpoints,
)
from pipelines.storage import AnyPath, path_of
from pipelines.training.checkpoint_writer import ray_checkpoint, report_checkpoint
from pipelines.transfers import on_disk
from xkd_core import sharding
from xkd_core.compilation import compile_blocks
from xkd_core.losses import Centers, initial_centers
from xkd_core.optim import build_optimizer, freeze_first_blocks
from xkd_core.train_step import TrainState
from xkd_core.transformer import checkpoint_activations
from xkd_core.weights.initial import begin_from
from xkd_core.xkd import XKD, build_xkd, load_model_tensors, model_tensors


def build_state(config: PretrainConfig, initial: str | None = None) -> TrainState:
    """Builds networks and optimizer with the same weights in every worker.

    Args:
        config: Settings of the training.
        initial: File of the weights to begin from (`initial_weights`); None for new ones.
    """
    device = get_device()
    torch.manual_seed(config.seed)
    model = build_xkd(config.model)
    given: dict[str, Tensor] = {}
    if initial is not None:
        with on_disk(path_of(initial)) as file:
            given = load_file(file)
    if config.init is not None and given:
        begin_from(model, given, config.init.networks)
    freeze_first_blocks(model, config.optimizer)
    model = model.to(device)
    if config.activation_checkpointing:
        for block in model.learning_blocks():
            checkpoint_activations(block)
    if config.compile:
        compile_blocks(model)
    centers = initial_centers(config.model.head.output_width, device)
    return TrainState(
        model=model,
        forward=_wrapped(model, config),
        optimizer=build_optimizer(model, config.optimizer),
        centers=Centers(
            video=given.get(VIDEO_CENTER, centers.video).to(centers.video),
            audio=given.get(AUDIO_CENTER, centers.audio).to(centers.audio),
        ),
    )


def _wrapped(model: XKD, config: PretrainConfig) -> torch.nn.Module:
    if config.parallelism == "ddp":
        # Centers are not buffers, so DDP has nothing to broadcast.
        wrapped: torch.nn.Module = prepare_model(
            model, parallel_strategy_kwargs={"broadcast_buffers": False}
        )
        return wrapped
    if train.get_context().get_world_size() > 1:
        sharding.shard(model, [*model.learning_blocks(), *model.teaching_blocks()])
    return model


def saved_tensors(state: TrainState) -> dict[str, Tensor]:
    """Returns the tensors of the networks and the centers, possibly sharded."""
    centers = {VIDEO_CENTER: state.centers.video, AUDIO_CENTER: state.centers.audio}
    return {**model_tensors(state.model), **centers}


def checkpoint_to_load(
    config: PretrainConfig, rungs: Mapping[str, Any] | None = None
) -> AnyPath | None:
    """Returns the run's newest complete checkpoint, or else the one that `resume` names, or None.

    The checkpoints on disk count, because a training may be killed before it reports one to Ray
    Train. Such a checkpoint is reported here, with its scores if `rungs` is the plan of a trial.
    Rank 0 reads the disk; all workers must call this.
    """
    folder = path_of(config.output) / config.name
    reported = {
        PurePosixPath(known.checkpoint.path).name for known in train.get_all_reported_checkpoints()
    }
    newest = newest_checkpoint(folder) if train.get_context().get_world_rank() == 0 else None
    name = broadcast_from_rank_zero(newest.name if newest is not None else "")
    if train.get_context().get_world_rank() == 0:
        remove_other_checkpoints(folder, {folder / one for one in (*reported, name) if one})
    if name and name not in reported:
        scored = rung_at(rungs, read_info(folder / name).next_step)
        report_checkpoint(ray_checkpoint(folder / name), scored)
    if name:
        return folder / name
    return find_checkpoint(config.resume) if config.resume is not None else None


def load_state(state: TrainState, folder: AnyPath, config: PretrainConfig, dataset_id: str) -> None:
    """Restores the state of a checkpoint.

    Raises:
        UserError: If it belongs to other clips.
    """
    check_dataset(folder, config.dataset, dataset_id)
    tensors = load_tensors(folder)
    device = get_device()
    state.centers = Centers(
        video=tensors.pop(VIDEO_CENTER).to(device), audio=tensors.pop(AUDIO_CENTER).to(device)
    )
    load_model_tensors(state.model, tensors)
    sharding.load_optimizer_state(state.optimizer, load_optimizer_state(folder))
    state.step = read_info(folder).next_step


def autocast_dtype(config: PretrainConfig) -> torch.dtype | None:
    """Returns the autocast type for `precision` on this device; None for float32."""
    on_gpu = get_device().type == "cuda" and torch.cuda.is_bf16_supported()
    if config.precision == "bfloat16" or (config.precision == "auto" and on_gpu):
        return torch.bfloat16
    return None


def step_options(config: PretrainConfig) -> dict[str, Any]:
    """Returns the arguments by which a step follows the settings on this device."""
    return {
        "autocast_dtype": autocast_dtype(config),
        "accumulation_steps": config.accumulation_steps,
    }

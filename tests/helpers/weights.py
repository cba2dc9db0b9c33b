"""Weights that a training of `tests/helpers/training.py` can begin from."""

from pathlib import Path

import torch

from pipelines.config.pretrain import PretrainConfig
from pipelines.models.checkpoints import (
    AUDIO_CENTER,
    VIDEO_CENTER,
    TrainingInfo,
    checkpoint_name,
    save_checkpoint,
)
from pipelines.models.encoder_files import ClipSettings, EncoderInfo
from pipelines.registry.versions import find_or_make_version, registered_model
from tests.helpers.tracking import run_at
from tests.helpers.training import folder_of, tiny_config
from xkd_core.config import ModelConfig
from xkd_core.xkd import XKD, build_xkd, model_tensors

CLIPS = ClipSettings(segment_seconds=2.0, min_segment_seconds=0.5, short_side=16)


def some_networks(model: ModelConfig, seed: int = 5) -> XKD:
    """Networks whose teachers differ from their students."""
    torch.manual_seed(seed)
    networks = build_xkd(model)
    with torch.no_grad():
        for name, tensor in networks.named_parameters():
            if "_teacher" in name:
                tensor.add_(0.1 * torch.randn_like(tensor))
    return networks.eval()


def earlier_training(home: Path, networks: XKD, **settings) -> Path:
    """Leaves a checkpoint of a training with other clips; returns it."""
    config: PretrainConfig = tiny_config(home, home / "gone", name="earlier", **settings)
    path = folder_of(config) / checkpoint_name(7)
    width = config.model.head.output_width
    centers = {VIDEO_CENTER: torch.full((width,), 0.25), AUDIO_CENTER: torch.full((width,), 0.5)}
    info = TrainingInfo(7, 60, 6.0, config.model_dump(mode="json"), "others", "run7", "code")
    save_checkpoint(path, {**model_tensors(networks), **centers}, {}, info)
    return path


def register(home: Path, networks: XKD, modality: str, model: ModelConfig, **alias: str) -> str:
    """Registers a teacher at `home`; returns the URI of the version."""
    run = run_at(home)
    info = EncoderInfo(modality, model, CLIPS, {"role": "teacher", "step": 7})
    name = f"xkd-{modality}"
    registered_model(run.client(), name, info)
    encoder = networks.get_submodule(f"{modality}_teacher")
    version = find_or_make_version(encoder, info, name, "card", run)
    for one in alias.values():
        run.client().set_registered_model_alias(name, one, str(version.version))
    return f"models:/{name}/{version.version}"

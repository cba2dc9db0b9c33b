"""The micro-sized networks that the tests of the method share."""

import torch

from xkd_core.config import (
    AudioConfig,
    HeadConfig,
    MethodConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TransformerConfig,
    VideoConfig,
)
from xkd_core.losses import initial_centers
from xkd_core.optim import build_optimizer
from xkd_core.train_step import TrainState
from xkd_core.views.views import Views
from xkd_core.xkd import XKD, build_xkd

VARIANTS = (
    "modality_specific",
    "modality_agnostic_student",
    "modality_agnostic_teacher_student",
)
NUM_CLIPS = 4


def micro_config(variant="modality_specific", **sections):
    """Three blocks of width 48; 64 video tokens and 32 audio tokens."""
    model = ModelConfig(
        variant=variant,
        video=VideoConfig(
            num_frames=8,
            frame_rate=8.0,
            size=32,
            local_num_frames=2,
            local_size=24,
            tubelet_size=2,
            patch_size=8,
        ),
        audio=AudioConfig(
            num_samples=16_000,
            local_num_samples=4_000,
            num_mels=16,
            hop_length=252,
            patch_bins=4,
            patch_frames=8,
        ),
        encoder=TransformerConfig(width=48, depth=3, num_heads=3),
        decoder=TransformerConfig(width=32, depth=2, num_heads=4),
        head=HeadConfig(hidden_width=64, bottleneck_width=24, output_width=96),
    )
    optimizer = OptimizerConfig(warmup_epochs=0.0, learning_rate=1.0e-3)
    settings = {"model": model, "objective": ObjectiveConfig(), "optimizer": optimizer}
    return MethodConfig(**{**settings, **sections})


def micro_views(num_clips=NUM_CLIPS, num_video_locals=1, num_audio_locals=1):
    return Views(
        video_global=torch.randn(num_clips, 3, 8, 32, 32),
        video_locals=torch.randn(num_video_locals, num_clips, 3, 2, 24, 24),
        audio_global=torch.randn(num_clips, 1, 16, 64),
        audio_locals=torch.randn(num_audio_locals, num_clips, 1, 16, 16),
        video_mask_noise=torch.rand(num_clips, 64),
        audio_mask_noise=torch.rand(num_clips, 32),
    )


def micro_model(variant="modality_specific") -> XKD:
    return build_xkd(micro_config(variant).model)


def train_state(model: XKD, config: MethodConfig) -> TrainState:
    return TrainState(
        model=model,
        forward=model,
        optimizer=build_optimizer(model, config.optimizer),
        centers=initial_centers(config.model.head.output_width),
    )

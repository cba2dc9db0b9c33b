"""Published files as weights to begin from: settings that fit them, and their heads and decoders.

A file does not say what clips it is for. They are taken to be those of the model that begins from
it if the number of positions agrees, else the paper's.

Format: the checkpoints of arXiv:2211.13929.
"""

from pathlib import Path

import torch

from xkd_core.config import AudioConfig, ModelConfig, VideoConfig
from xkd_core.encoders import Modality
from xkd_core.published.encoders import PublishedEncoder, infer_model
from xkd_core.published.files import read_published_tensors
from xkd_core.published.names import CENTER_NAMES, published_name
from xkd_core.shapes import Tensor
from xkd_core.weights.initial import CENTER
from xkd_core.xkd import build_xkd

_PATCHES = {"video": "cuboid_embed.proj.weight", "audio": "patch_embed.proj.weight"}
_DEFAULT_HEAD_WIDTH = 64


def published_model(published: PublishedEncoder, model: ModelConfig) -> ModelConfig:
    """Infers the settings of a published encoder that a model begins from.

    Raises:
        ValueError: If its patches or positions fit neither the model's clips nor the paper's.
    """
    modality = published.modality
    section: VideoConfig | AudioConfig = model.video if modality == "video" else model.audio
    paper: VideoConfig | AudioConfig = VideoConfig() if modality == "video" else AudioConfig()
    weight, table = (published.tensors.get(n) for n in (_PATCHES[modality], "enc_pos_embed"))
    if weight is None or weight.ndim != 2 or table is None or table.ndim != 3:
        raise ValueError(f"{_PATCHES[modality]} or enc_pos_embed is missing or misshapen")
    if weight.shape[1] not in (section.patch_dim, paper.patch_dim):
        raise ValueError(
            f"patches of {modality} hold {weight.shape[1]} numbers there and {section.patch_dim} "
            f"here ({_patch_of(section)})"
        )
    is_ours = weight.shape[1] == section.patch_dim and table.shape[1] - 1 == section.num_tokens
    width = table.shape[-1]
    inferred = infer_model(
        published,
        video=model.video if is_ours else None,
        audio=model.audio if is_ours else None,
        # Files do not record it; widths that the default does not divide take the model's.
        num_heads=model.encoder.num_heads if width % _DEFAULT_HEAD_WIDTH else None,
    )
    clips = inferred.video if modality == "video" else inferred.audio
    return model.model_copy(
        update={
            modality: clips,
            "encoder": inferred.encoder,
            "position_interpolation": "scale_factor",
        }
    )


def published_parts(file: Path, model: ModelConfig, modality: Modality) -> dict[str, Tensor]:
    """Returns the heads, the decoder and the center of a whole checkpoint that have known names."""
    tensors = read_published_tensors(file)
    with torch.device("meta"):
        names = list(build_xkd(model).state_dict())
    prefix = f"{modality}_"
    found = {
        name.removeprefix(prefix): tensors[published_name(name)]
        for name in names
        if name.startswith((f"{prefix}student_head", f"{prefix}teacher_head", f"{prefix}decoder"))
        and published_name(name) in tensors
    }
    center = tensors.get(CENTER_NAMES[modality])
    return found if center is None else {**found, CENTER: center.flatten()}


def _patch_of(section: VideoConfig | AudioConfig) -> str:
    if isinstance(section, VideoConfig):
        return (
            f"model.video.tubelet_size {section.tubelet_size}, "
            f"model.video.patch_size {section.patch_size}"
        )
    return (
        f"model.audio.patch_bins {section.patch_bins}, "
        f"model.audio.patch_frames {section.patch_frames}"
    )

"""Conversion between our tensor names and those of the published checkpoints.

A published state dict repeats each student encoder under its autoencoder, stores the fixed lengths
of the head's last layer as ones, holds the centers, and repeats shared tensors.

Format: the checkpoints of arXiv:2211.13929.
"""

import re
from collections.abc import Mapping

import torch

from xkd_core.encoders import Encoder
from xkd_core.losses import Centers
from xkd_core.shapes import Tensor
from xkd_core.xkd import XKD

_BACKBONE_RULES = (
    (r"^blocks\.", "encoder.blocks."),
    (r"^norm\.", "encoder_norm."),
    (r"^position_table$", "enc_pos_embed"),
)
_PATCH_NAMES = {"video": "cuboid_embed.proj.", "audio": "patch_embed.proj."}
_HEAD_RULES = (
    (r"^hidden_1\.", "mlp.0."),
    (r"^norm_1\.", "mlp.1."),
    (r"^hidden_2\.", "mlp.3."),
    (r"^norm_2\.", "mlp.4."),
    (r"^bottleneck\.", "mlp.6."),
    (r"^prototypes\.weight$", "last_layer.weight_v"),
)
_DECODER_RULES = (
    (r"^input_projection\.", "mid_proj."),
    (r"^output_projection\.", "out_proj."),
    (r"^blocks\.", "decoder.blocks."),
    (r"^position_table$", "dec_pos_embed"),
)
_MODALITY_NAMES = {"video": "vid", "audio": "aud"}
CENTER_NAMES = {"video": "vt2as_ce_loss.center", "audio": "at2vs_ce_loss.center"}
_LENGTH_NAME = "head.last_layer.weight_g"


def published_name(name: str) -> str:
    """Returns the published name of a tensor of `XKD`.

    >>> published_name("audio_student_head.norm_2.weight")
    'aud_student.head.mlp.4.weight'
    >>> published_name("video_teacher.patch_projection.bias")
    'vid_teacher.backbone.cuboid_embed.proj.bias'
    """
    module, rest = name.split(".", maxsplit=1)
    modality, role = module.split("_", maxsplit=1)
    prefix = _MODALITY_NAMES[modality]
    if role == "decoder":
        return f"{prefix}_ae.{_rename(rest, _DECODER_RULES)}"
    if role.endswith("_head"):
        return f"{prefix}_{role.removesuffix('_head')}.head.{_rename(rest, _HEAD_RULES)}"
    return f"{prefix}_{role}.backbone.{_published_backbone_name(rest, modality)}"


def load_published(model: XKD, tensors: Mapping[str, Tensor]) -> Centers:
    """Copies a published state dict of the whole method into a model; returns the centers.

    Raises:
        ValueError: If a tensor is missing, unexpected, of another shape, or contradicts another.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    state = model.state_dict()
    wanted = {name: published_name(name) for name in state}
    _check_names(tensors, set(wanted.values()))
    for name, published in wanted.items():
        _copy(state[name], tensors[published], published)
    for name, published in wanted.items():  # a shared tensor was written twice
        if not torch.equal(state[name], tensors[published].to(state[name])):
            raise ValueError(f"{published} differs from another tensor that it must equal")
    video, audio = (tensors[CENTER_NAMES[modality]].flatten().clone() for modality in CENTER_NAMES)
    return Centers(video, audio)


def to_published(model: XKD, centers: Centers) -> dict[str, Tensor]:
    """Returns the published state dict of a model, with all its repetitions."""
    tensors = {published_name(name): tensor for name, tensor in model.state_dict().items()}
    for name in list(tensors):
        if "_student.backbone." in name:
            tensors[name.replace("_student.backbone.", "_ae.encoder.")] = tensors[name]
        elif name.endswith("last_layer.weight_v"):
            ones = torch.ones_like(tensors[name][:, :1])
            tensors[name.replace("weight_v", "weight_g")] = ones
    tensors[CENTER_NAMES["video"]] = centers.video[None]
    tensors[CENTER_NAMES["audio"]] = centers.audio[None]
    return tensors


def load_published_encoder(encoder: Encoder, tensors: Mapping[str, Tensor]) -> None:
    """Copies a published file of one encoder into an encoder of its modality and size.

    Raises:
        ValueError: If a tensor is missing, unexpected or of another shape.
    """
    state = encoder.state_dict()
    wanted = {name: _published_backbone_name(name, _modality(encoder)) for name in state}
    _check_names(tensors, set(wanted.values()))
    for name, published in wanted.items():
        _copy(state[name], tensors[published], published)


def to_published_encoder(encoder: Encoder) -> dict[str, Tensor]:
    """Returns the published tensors of one encoder."""
    modality = _modality(encoder)
    return {
        _published_backbone_name(name, modality): tensor
        for name, tensor in encoder.state_dict().items()
    }


def _modality(encoder: Encoder) -> str:
    return "video" if len(encoder.patch_size) == 3 else "audio"


def _published_backbone_name(name: str, modality: str) -> str:
    patches = (r"^patch_projection\.", _PATCH_NAMES[modality])
    return _rename(name, (patches, *_BACKBONE_RULES))


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name


def _check_names(tensors: Mapping[str, Tensor], wanted: set[str]) -> None:
    missing = sorted(wanted - tensors.keys())
    unexpected = sorted(
        name
        for name in tensors.keys() - wanted
        if "_ae.encoder." not in name
        and not name.endswith(_LENGTH_NAME)
        and name not in CENTER_NAMES.values()
    )
    if missing or unexpected:
        raise ValueError(
            f"published tensors do not fit the model; missing: {missing[:5]}, "
            f"unexpected: {unexpected[:5]}"
        )


def _copy(own: Tensor, published: Tensor, name: str) -> None:
    if own.shape != published.shape:
        raise ValueError(
            f"{name} has shape {tuple(published.shape)}, but the model needs {tuple(own.shape)}"
        )
    with torch.no_grad():
        own.copy_(published)

"""Builds encoders from published files.

Width, depth and frame size are inferred from the tensors, so files of every published size work. A
file of one encoder does not contain the number of heads (one per 64 numbers of width), the clips it
takes (the paper's by default), or whether it is a student or a teacher (the file name says).

Format: the checkpoints of arXiv:2211.13929.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from xkd_core.config import AudioConfig, ModelConfig, TransformerConfig, VideoConfig
from xkd_core.encoders import Encoder, Modality, build_encoder
from xkd_core.published.files import read_published_tensors
from xkd_core.published.names import load_published_encoder
from xkd_core.shapes import Tensor

Role = Literal["student", "teacher"]

_HEAD_WIDTH = 64
_MODALITIES: dict[str, Modality] = {"vid": "video", "aud": "audio"}
_ROLES: dict[str, Role] = {"student": "student", "teacher": "teacher"}
_BACKBONE = re.compile(r"(vid|aud)_(student|teacher)\.backbone\.")
_FILE_NAME = re.compile(r"(vid|aud)_(student|teacher)\.pth(\.tar)?$")
_BLOCK = re.compile(r"encoder\.blocks\.(\d{1,4})\.")
_TOKENIZERS: dict[Modality, str] = {"video": "cuboid_embed.proj.", "audio": "patch_embed.proj."}


class PublishedEncoder(NamedTuple):
    """One encoder of a file."""

    modality: Modality
    role: Role | None
    """None if unknown."""
    tensors: dict[str, Tensor]
    """By their names in files of one encoder, as training writes them."""


def read_published_encoders(
    file: Path, *, modality: Modality | None = None, role: Role | None = None
) -> list[PublishedEncoder]:
    """Returns the encoders of a file; of a whole checkpoint only those of `modality` and `role`.

    Raises:
        ValueError: Like `read_published_tensors`, or if the file has no such encoder.
    """
    tensors = read_published_tensors(file)
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _BACKBONE.match(name):
            found.setdefault((match[1], match[2]), {})[name[match.end() :]] = tensor
    if not found:
        modality, tensors = _single_encoder(file, tensors, modality)
        named = _FILE_NAME.search(file.name)
        return [PublishedEncoder(modality, role or (_ROLES[named[2]] if named else None), tensors)]
    encoders = [
        PublishedEncoder(_MODALITIES[of_modality], _ROLES[of_role], own)
        for (of_modality, of_role), own in sorted(found.items(), reverse=True)  # video first
        if modality in (None, _MODALITIES[of_modality]) and role in (None, of_role)
    ]
    if not encoders:
        wanted = " ".join(word for word in (modality, role) if word)
        there = ", ".join(f"{_MODALITIES[one]} {other}" for one, other in sorted(found))
        raise ValueError(f"{file} has no {wanted}; it has {there}")
    return encoders


def infer_model(
    published: PublishedEncoder,
    *,
    video: VideoConfig | None = None,
    audio: AudioConfig | None = None,
    num_heads: int | None = None,
) -> ModelConfig:
    """Infers the settings of an encoder from its tensors, for the paper's clips by default.

    Without `video`, the frame size follows from the position table.

    Raises:
        ValueError: If the tensors do not fit each other or the clips; the message names the key.
    """
    video, audio = video or VideoConfig(), audio or AudioConfig()
    width = _length(published.tensors, "cls_token")
    num_tokens = _length(published.tensors, "enc_pos_embed", axis=1) - 1
    if published.modality == "video":
        video = _fit_size(video, num_tokens)
    elif num_tokens != audio.num_tokens:
        raise ValueError(_misfit(num_tokens, audio.grid, "audio.num_samples, audio.num_mels"))
    size = TransformerConfig(
        width=width, depth=_depth(published.tensors), num_heads=_num_heads(width, num_heads)
    )
    return ModelConfig(video=video, audio=audio, encoder=size)


def build_published_encoder(published: PublishedEncoder, model: ModelConfig) -> Encoder:
    """Builds the encoder with its weights, in float32 on the CPU.

    Raises:
        ValueError: If a tensor is missing, unexpected, of another shape, or not finite.
    """
    with torch.device("meta"):  # shapes are compared before any memory is taken
        encoder = build_encoder(model, published.modality)
    load_published_encoder(encoder, published.tensors)
    for name, tensor in published.tensors.items():
        if not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{name} has numbers that are not finite")
    encoder.to_empty(device="cpu")
    load_published_encoder(encoder, published.tensors)
    return encoder


def _single_encoder(
    file: Path, tensors: dict[str, Tensor], given: Modality | None
) -> tuple[Modality, dict[str, Tensor]]:
    """Returns the modality of a file of one encoder, and its tensors by their training names."""
    name = next((n for n in _TOKENIZERS.values() if f"{n}weight" in tensors), None)
    if name is None:
        names = " nor ".join(f"{name}weight" for name in _TOKENIZERS.values())
        raise ValueError(f"{file} has neither {names}, so it holds no encoder of XKD")
    name = f"{name}weight"
    of_evaluation = any(other.startswith(("blocks.", "pos_embed")) for other in tensors)
    found: Modality | None = "video" if name.startswith(_TOKENIZERS["video"]) else "audio"
    if of_evaluation:  # where both modalities have one name
        found = _modality_of_patches(tensors[name])
    modality = found or given
    if modality is None:
        raise ValueError(
            f"{name} has shape {tuple(tensors[name].shape)}, which is published for neither "
            "modality: modality must be given"
        )
    if given not in (None, modality):
        raise ValueError(f"{file} has no {given} encoder: its {name} is that of {modality}")
    if of_evaluation:
        tensors = {_training_name(name, modality): tensor for name, tensor in tensors.items()}
    return modality, tensors


def _modality_of_patches(weight: Tensor) -> Modality | None:
    dims: dict[int, Modality] = {
        VideoConfig().patch_dim: "video",
        AudioConfig().patch_dim: "audio",
    }
    return dims.get(weight.shape[-1]) if weight.ndim == 2 else None


def _training_name(name: str, modality: Modality) -> str:
    """Inverts `evaluation_name`."""
    if name.startswith("blocks."):
        return f"encoder.{name}"
    if name.startswith("norm."):
        return f"encoder_{name}"
    if name.startswith(_TOKENIZERS["audio"]):
        return name.replace(_TOKENIZERS["audio"], _TOKENIZERS[modality])
    return "enc_pos_embed" if name == "pos_embed" else name


def _length(tensors: Mapping[str, Tensor], name: str, axis: int = -1) -> int:
    """Returns a length of a tensor that must have three axes."""
    if name not in tensors:
        raise ValueError(f"{name} is missing")
    shape = tuple(tensors[name].shape)
    if len(shape) != 3 or not math.prod(shape):
        raise ValueError(f"{name} has shape {shape}, but must have three axes and not be empty")
    return shape[axis]


def _num_heads(width: int, given: int | None) -> int:
    if given is None and width % _HEAD_WIDTH:
        raise ValueError(
            f"cls_token has width {width}, no multiple of {_HEAD_WIDTH}: num_heads must be given"
        )
    num_heads = given or width // _HEAD_WIDTH
    if width % num_heads:
        raise ValueError(f"num_heads ({num_heads}) must divide the width of cls_token ({width})")
    return num_heads


def _depth(tensors: Mapping[str, Tensor]) -> int:
    numbers = {int(match[1]) for name in tensors if (match := _BLOCK.match(name))}
    missing = set(range(max(numbers, default=0) + 1)) - numbers
    if missing:
        raise ValueError(f"encoder.blocks.{min(missing)} is missing")
    return len(numbers)


def _fit_size(video: VideoConfig, num_tokens: int) -> VideoConfig:
    if num_tokens == video.num_tokens:
        return video
    steps = video.grid[0]
    side = math.isqrt(num_tokens // steps)
    if "size" in video.model_fields_set or side < 1 or steps * side**2 != num_tokens:
        raise ValueError(_misfit(num_tokens, video.grid, "video.num_frames, video.size"))
    return VideoConfig.model_validate({**video.model_dump(), "size": side * video.patch_size})


def _misfit(num_tokens: int, grid: tuple[int, ...], settings: str) -> str:
    wanted = " x ".join(str(length) for length in grid)
    return f"enc_pos_embed is for {num_tokens} patches, but the clip ({settings}) has {wanted}"

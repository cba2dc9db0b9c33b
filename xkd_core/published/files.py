"""Reads and writes files of the published checkpoints.

A file holds the weights of one encoder, with names of training or of evaluation, or a whole
checkpoint of training, `{"model": ..., "epoch": ..., "optimizer": ..., "amp": ...}`. Files are
untrusted: `pickles.py` reads them without executing anything, and this module checks that the
storage of each tensor is as large as its shape, which PyTorch does not. `encoders.py` builds
encoders from them.

Format: the checkpoints of arXiv:2211.13929.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from xkd_core.encoders import Encoder
from xkd_core.losses import Centers
from xkd_core.published.names import to_published, to_published_encoder
from xkd_core.published.pickles import printable, read_pickle
from xkd_core.shapes import Tensor
from xkd_core.xkd import XKD

Naming = Literal["training", "evaluation"]

_WHOLE_KEY = "model"
_DISTRIBUTED_PREFIX = "module."
_EVALUATION_RULES = (
    (r"^encoder\.", ""),
    (r"^encoder_norm\.", "norm."),
    (r"^enc_pos_embed$", "pos_embed"),
    (r"^cuboid_embed\.", "patch_embed."),
)


def read_published_tensors(file: Path) -> dict[str, Tensor]:
    """Reads the tensors of a file by name; of a whole checkpoint those of networks and centers.

    Raises:
        ValueError: If the file is of another kind or damaged, or a tensor is inconsistent.
    """
    values = read_pickle(file)
    if isinstance(values, Mapping) and isinstance(values.get(_WHOLE_KEY), Mapping):
        values = values[_WHOLE_KEY]
    if not isinstance(values, Mapping):
        raise ValueError(f"{file} must hold tensors by name, but holds a {type(values).__name__}")
    if not any(isinstance(value, Tensor) for value in values.values()):
        names = ", ".join(printable(name) for name in list(values)[:8]) or "nothing"
        raise ValueError(
            f"{file} must hold tensors by name, at its top or under {_WHOLE_KEY!r}, but has {names}"
        )
    for name, value in values.items():
        _check_tensor(name, value)
    return {str(name).removeprefix(_DISTRIBUTED_PREFIX): value for name, value in values.items()}


def save_published_encoder(encoder: Encoder, file: Path, *, naming: Naming = "training") -> None:
    """Writes the weights of one encoder with the names of training or of evaluation."""
    tensors = to_published_encoder(encoder)
    if naming == "evaluation":
        tensors = {evaluation_name(name): tensor for name, tensor in tensors.items()}
    torch.save(_plain(tensors), file)


def save_published_model(model: XKD, centers: Centers, file: Path, *, epoch: int) -> None:
    """Writes a whole checkpoint whose next epoch is `epoch`, for `load_published`.

    Omits the optimizer, whose state depends on the parameter order of the published program.
    """
    tensors = {
        _DISTRIBUTED_PREFIX + name: tensor
        for name, tensor in _plain(to_published(model, centers)).items()
    }
    torch.save({_WHOLE_KEY: tensors, "epoch": epoch, "optimizer": None, "amp": None}, file)


def evaluation_name(name: str) -> str:
    """Returns the name that evaluation gives to a tensor of one encoder.

    >>> evaluation_name("encoder.blocks.0.norm1.bias")
    'blocks.0.norm1.bias'
    """
    for pattern, replacement in _EVALUATION_RULES:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name


def _check_tensor(name: Any, value: Any) -> None:
    """Refuses values that are not dense float tensors, or larger than their storage."""
    if not isinstance(name, str) or name != printable(name):
        raise ValueError(f"{printable(name)} is not the name of a tensor")
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, but is of type {type(value).__name__}")
    if value.is_nested or value.layout != torch.strided or not value.is_floating_point():
        raise ValueError(f"{name} must be a dense tensor of floating-point numbers")
    if value.device.type != "cpu" or value.untyped_storage().nbytes() < value.nbytes:
        raise ValueError(f"{name} has fewer numbers than its shape {tuple(value.shape)} needs")


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

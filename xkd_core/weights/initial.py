"""Weights that networks begin from: those of another training, fitted to other clips.

Names are those of `XKD` without the modality, so networks of either modality look alike:

    student.blocks.0.norm1.weight    student_head.bottleneck.weight    decoder.mask_token
    teacher.position_table           teacher_head.prototypes.weight    center

Where a variant shares transformer blocks between video and audio, one of the two gives them. Used
by `pipelines.training.initial_weights`; reads no files.

Paper: XKD, arXiv:2211.13929; ViT, arXiv:2010.11929 (resizing of position tables).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from xkd_core.config import ModelConfig
from xkd_core.encoders import MODALITIES, Modality
from xkd_core.positions import resize_positions
from xkd_core.shapes import Tensor
from xkd_core.xkd import XKD, build_xkd

Role = Literal["student", "teacher"]
Begins = Literal["students", "teachers", "both"]
CENTER = "center"
CENTERS = "centers."
"""Prefix of the centers of both modalities, as in a checkpoint."""
_TABLE = "position_table"
_KERNELS = {"video": "trilinear", "audio": "bicubic"}
_OTHER: dict[str, Role] = {"student": "teacher", "teacher": "student"}
_PARTS: dict[str, tuple[str, ...]] = {
    "students": ("student", "student_head", "decoder"),
    "teachers": ("teacher", "teacher_head", CENTER),
}
_PARTS["both"] = _PARTS["students"] + _PARTS["teachers"]
_MUST_EQUAL = {
    "video": ("video.tubelet_size", "video.patch_size"),
    "audio": ("audio.num_mels", "audio.patch_bins", "audio.patch_frames"),
}
_SHOULD_EQUAL = {
    "video": ("video.frame_rate",),
    "audio": ("audio.sample_rate", "audio.n_fft", "audio.hop_length", "audio.mean", "audio.std"),
}
_SIZES = ("encoder.width", "encoder.depth", "encoder.num_heads")


@dataclass(frozen=True)
class GivenNetworks:
    """Networks of one modality."""

    model: ModelConfig
    """The settings that they were built with."""
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Fitted:
    """Networks of one modality that fit a model."""

    tensors: dict[str, Tensor]
    remarks: tuple[str, ...]
    """What was changed or left out, a sentence each."""


def misfits(there: ModelConfig, here: ModelConfig, modality: Modality) -> list[str]:
    """Returns the settings because of which an encoder cannot be loaded, with both values."""
    return _differences(there, here, (*_SIZES, *_MUST_EQUAL[modality]))


def other_inputs(there: ModelConfig, here: ModelConfig, modality: Modality) -> list[str]:
    """Returns the settings by which the same weights see clips differently, with both values."""
    return _differences(there, here, _SHOULD_EQUAL[modality])


def fitted(
    given: GivenNetworks, model: ModelConfig, modality: Modality, role: Role | None = None
) -> Fitted:
    """Fits networks to a model: resizes position tables, leaves out what has other shapes.

    Args:
        given: Networks without `misfits`.
        model: Settings of the model that begins from them.
        modality: Of the networks.
        role: Network that both begin as; None: students as the student, teachers as the teacher.
    """
    tensors = dict(given.tensors)
    if role is not None:
        tensors = {
            name: tensor for name, tensor in tensors.items() if not name.startswith(_OTHER[role])
        }
        if role == "student":
            tensors.pop(CENTER, None)  # of the teacher's outputs
        twin = {name.replace(role, _OTHER[role], 1): t for name, t in tensors.items()}
        tensors = {**twin, **tensors}
    old, new = _grid(given.model, modality), _grid(model, modality)
    remarks = []
    if old != new:
        resized = {
            name: _resized(table, given.model, old, new)
            for name, table in tensors.items()
            if name.rpartition(".")[2] == _TABLE
        }
        tensors |= resized
        remarks.append(
            f"{modality} positions are resized from {_shape(old)} to {_shape(new)} patches"
            f" ({_KERNELS[modality]})"
        )
    wanted = _shapes(model, modality)
    for part, section in (("student_head", "head"), ("teacher_head", "head"), ("decoder",) * 2):
        names = {name for name in tensors if name.startswith(f"{part}.")}
        if not names or _fits(tensors, wanted, part, given.model, model, section):
            continue
        tensors = {name: tensor for name, tensor in tensors.items() if name not in names}
        if part == "teacher_head":
            tensors.pop(CENTER, None)
        else:
            changes = _differences(given.model, model, _fields(model, section))
            why = "; ".join(changes) or "its tensors have other shapes"
            remarks.append(f"the {modality} {section} is new: {why}")
    return Fitted(tensors, tuple(remarks))


def join(
    model: ModelConfig,
    fits: Mapping[Modality, Mapping[str, Tensor]],
    begins: Begins,
    shared_blocks: Modality | None = None,
) -> dict[str, Tensor]:
    """Returns the tensors of one or both modalities by their names in `XKD`.

    Args:
        model: Settings of the model that begins from them.
        fits: From `fitted`, for each modality that is given.
        begins: Which networks begin from them.
        shared_blocks: Modality whose blocks a variant with shared blocks takes.

    Raises:
        ValueError: If a variant shares blocks that differ and `shared_blocks` does not choose.
    """
    parts = _PARTS[begins]
    joined = {
        f"{modality}_{name}" if name != CENTER else f"{CENTERS}{modality}": tensor
        for modality, tensors in fits.items()
        for name, tensor in tensors.items()
        if name.partition(".")[0] in parts
    }
    for role in _sharing(model):
        blocks = {
            modality: {
                name: tensor
                for name, tensor in joined.items()
                if name.startswith(f"{modality}_{role}.blocks.")
            }
            for modality in fits
        }
        if len(blocks) < len(MODALITIES) or not blocks["video"]:
            continue
        pairs = zip(blocks["video"].values(), blocks["audio"].values(), strict=True)
        if shared_blocks is None and not all(torch.equal(one, other) for one, other in pairs):
            raise ValueError(
                f"model.variant ({model.variant}) shares the blocks of both {role}s, but those of "
                "init.video and init.audio differ: set init.shared_blocks to video or audio, or "
                "give one modality alone"
            )
        dropped: Modality = "video" if shared_blocks == "audio" else "audio"
        joined = {name: t for name, t in joined.items() if name not in blocks[dropped]}
    return joined


def begin_from(model: XKD, tensors: Mapping[str, Tensor], begins: Begins) -> None:
    """Copies tensors from `join` into new networks; with `both`, teachers follow their students.

    Raises:
        ValueError: If a name or a shape is not the model's.
    """
    own = model.state_dict(keep_vars=True)
    students = {name: tensor for name, tensor in tensors.items() if "_teacher" not in name}
    _copy(own, students)
    if begins == "both":
        model.copy_students_to_teachers()
    _copy(own, {name: tensor for name, tensor in tensors.items() if name not in students})


def _copy(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.startswith(CENTERS):
                continue
            if name not in own or own[name].shape != tensor.shape:
                raise ValueError(f"{name} {tuple(tensor.shape)} is no tensor of this model")
            own[name].copy_(tensor)


def _sharing(model: ModelConfig) -> tuple[Role, ...]:
    """Returns the roles whose networks share blocks between modalities."""
    if model.variant == "modality_specific":
        return ()
    return ("student",) if model.variant == "modality_agnostic_student" else ("student", "teacher")


def _resized(
    table: Tensor, model: ModelConfig, grid: tuple[int, ...], new_grid: tuple[int, ...]
) -> Tensor:
    """Resizes a table (1, 1 + N, D), whose first position is that of CLS, as forward passes do."""
    patches = resize_positions(table[0, 1:], grid, new_grid, model.position_interpolation)
    return torch.cat([table[:, :1], patches[None].to(table)], dim=1)


def _grid(model: ModelConfig, modality: Modality) -> tuple[int, ...]:
    return model.video.grid if modality == "video" else model.audio.grid


def _shape(grid: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in grid)


def _shapes(model: ModelConfig, modality: Modality) -> dict[str, torch.Size]:
    with torch.device("meta"):
        tensors = build_xkd(model).state_dict()
    prefix = f"{modality}_"
    return {
        name.removeprefix(prefix): tensor.shape
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _fits(
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, torch.Size],
    part: str,
    there: ModelConfig,
    here: ModelConfig,
    section: str,
) -> bool:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    names = {name for name in (*shapes, *wanted) if name.startswith(f"{part}.")}
    is_same = getattr(there, section) == getattr(here, section)
    return is_same and all(shapes.get(name) == wanted.get(name) for name in names)


def _fields(model: ModelConfig, section: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in type(getattr(model, section)).model_fields)


def _differences(there: ModelConfig, here: ModelConfig, names: tuple[str, ...]) -> list[str]:
    pairs = {name: (_value(there, name), _value(here, name)) for name in names}
    return [
        f"model.{name} is {old} there and {new} here"
        for name, (old, new) in pairs.items()
        if old != new
    ]


def _value(model: ModelConfig, name: str) -> Any:
    section, _, field = name.partition(".")
    return getattr(getattr(model, section), field)

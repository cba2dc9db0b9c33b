"""A checkpoint: one folder with everything that training needs to go on, and evaluation to load.

    model.safetensors   students, teachers, heads, decoders, centres
    optimizer.pt        the optimizer (tensors and numbers only, read with weights_only)
    training.json       step, settings, dataset, MLflow run, and the size of each file

The feed's state is the step: a step takes one global batch. No random state is kept because all
random numbers follow from (seed, epoch, clip id). A folder whose files have not the sizes that
`training.json` names is incomplete and never loaded.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipelines.errors import UserError

FORMAT_VERSION = 1
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.pt"
TRAINING_FILE = "training.json"
VIDEO_CENTER = "centers.video"
AUDIO_CENTER = "centers.audio"


@dataclass(frozen=True)
class TrainingInfo:
    """What a checkpoint says about the training that left it."""

    next_step: int
    total_steps: int
    steps_per_epoch: float
    config: dict[str, Any]
    """A `PretrainConfig` as JSON."""
    dataset_id: str
    run_id: str
    """The MLflow run that goes on when training does."""
    code_version: str
    format_version: int = FORMAT_VERSION


def save_checkpoint(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    optimizer_state: dict[str, Any],
    info: TrainingInfo,
) -> None:
    """Writes a checkpoint into an empty folder; `training.json` comes last."""
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / MODEL_FILE)
    torch.save(optimizer_state, folder / OPTIMIZER_FILE)
    sizes = {name: (folder / name).stat().st_size for name in (MODEL_FILE, OPTIMIZER_FILE)}
    values = {**asdict(info), "files": sizes}
    (folder / TRAINING_FILE).write_text(json.dumps(values, indent=1))


def is_complete(folder: Path) -> bool:
    """Whether the folder is a checkpoint with all its files at full length."""
    try:
        values = json.loads((folder / TRAINING_FILE).read_text())
        sizes = values["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def find_checkpoint(place: str) -> Path:
    """The checkpoint at `place`, or the last complete one of the run whose folder it is.

    Raises:
        UserError: if there is none.
    """
    folder = Path(place)
    if is_complete(folder):
        return folder
    if not folder.is_dir():
        raise UserError(f"checkpoint ({place}) does not exist")
    found = [path for path in folder.iterdir() if path.is_dir() and is_complete(path)]
    if not found:
        raise UserError(f"checkpoint ({place}) holds no complete checkpoint")
    return max(found, key=lambda path: read_info(path).next_step)


def read_info(folder: Path) -> TrainingInfo:
    """What a checkpoint says about its training.

    Raises:
        UserError: if it was written in another format.
    """
    values = json.loads((folder / TRAINING_FILE).read_text())
    del values["files"]
    if values.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"checkpoint ({folder}) has format {values.get('format_version')}, "
            f"but this version reads format {FORMAT_VERSION}"
        )
    return TrainingInfo(**values)


def load_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The networks' tensors and the centres, on the CPU."""
    return load_file(folder / MODEL_FILE)


def load_optimizer_state(folder: Path) -> dict[str, Any]:
    """The optimizer's state, on the CPU; nothing but tensors and numbers is read."""
    return torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)

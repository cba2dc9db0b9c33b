"""A checkpoint: one folder with everything that training needs to go on, and evaluation to load.

    model.safetensors   students, teachers, heads, decoders, centres
    optimizer.pt        the optimizer (tensors and numbers only, read with weights_only)
    unsent.json         metrics that MLflow did not have yet, if there were any
    training.json       step, settings, dataset, MLflow run, and the size of each file

The feed's state is the step: a step takes one global batch. No random state is kept because all
random numbers follow from (seed, epoch, clip id). A checkpoint is written under another name,
synced and renamed, so it is whole or not there; a folder whose files have not the sizes that
`training.json` names is incomplete all the same and never loaded.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipelines.config.pretrain import PretrainConfig
from pipelines.errors import UserError
from pipelines.files import temporary_name
from xkd_core.xkd import XKD, build_xkd, load_model_tensors

FORMAT_VERSION = 1
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.pt"
UNSENT_IN_CHECKPOINT = "unsent.json"
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
    exclude_sha256: str | None = None
    """Of the ids left out, see `clip_ids_sha256`; None if an earlier version did not say."""
    health: Sequence[Mapping[str, float]] = ()
    """The last records, by which a collapse is judged."""
    format_version: int = FORMAT_VERSION


def checkpoint_name(next_step: int) -> str:
    """Folder of the checkpoint after which the step `next_step` follows."""
    return f"step_{next_step:09d}"


def save_checkpoint(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    optimizer_state: dict[str, Any],
    info: TrainingInfo,
    unsent: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes a checkpoint, in place of one that is there.

    Raises:
        OSError: if it cannot be written; nothing of it remains.
    """
    partial = temporary_name(folder)
    try:
        partial.mkdir(parents=True)
        _write_files(partial, tensors, optimizer_state, info, unsent)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
        _sync(folder.parent)
    except (SafetensorError, RuntimeError) as error:  # what these libraries make of an OSError
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_files(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    optimizer_state: dict[str, Any],
    info: TrainingInfo,
    unsent: Sequence[Mapping[str, Any]],
) -> None:
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / MODEL_FILE)
    with (folder / OPTIMIZER_FILE).open("wb") as file:
        torch.save(optimizer_state, file)
    if unsent:
        (folder / UNSENT_IN_CHECKPOINT).write_text(json.dumps(list(unsent)))
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    values = {**asdict(info), "files": sizes}
    (folder / TRAINING_FILE).write_text(json.dumps(values, indent=1))
    for place in (*folder.iterdir(), folder):
        _sync(place)


def _sync(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    found = newest_checkpoint(folder)
    if found is None:
        raise UserError(f"checkpoint ({place}) holds no complete checkpoint")
    return found


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of a run's folder that has the most steps."""
    found = [path for path in folder.glob("[!.]*") if is_complete(path)]
    return max(found, key=lambda path: read_info(path).next_step, default=None)


def remove_other_checkpoints(folder: Path, keep: set[Path]) -> None:
    """Removes what killed trainings left: partial checkpoints, and whole ones nobody knows."""
    for path in folder.glob("step_*"):
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".step_*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


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


def check_dataset(folder: Path, dataset: str, dataset_id: str) -> None:
    """Makes sure that a training that goes on from a checkpoint sees the clips it has seen.

    Raises:
        UserError: if the checkpoint belongs to other clips than `dataset` has now.
    """
    trained_on = read_info(folder).dataset_id
    if trained_on != dataset_id:
        raise UserError(
            f"checkpoint ({folder}) was trained on dataset {trained_on}, "
            f"but dataset ({dataset}) is {dataset_id} now: take another name, or the clips of then"
        )


def read_unsent(folder: Path) -> list[dict[str, Any]]:
    """Metrics from before the checkpoint that MLflow did not have yet."""
    file = folder / UNSENT_IN_CHECKPOINT
    return json.loads(file.read_text()) if file.exists() else []


def load_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The networks' tensors and the centres, on the CPU."""
    return load_file(folder / MODEL_FILE)


def load_optimizer_state(folder: Path) -> dict[str, Any]:
    """The optimizer's state, on the CPU; nothing but tensors and numbers is read."""
    return torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)


def load_model(checkpoint: Path, *, trained: bool = True) -> tuple[XKD, PretrainConfig]:
    """The networks of a checkpoint, or the same ones as they were before the first step."""
    config = PretrainConfig.model_validate(read_info(checkpoint).config)
    torch.manual_seed(config.seed)
    model = build_xkd(config.model)
    if trained:
        tensors = load_tensors(checkpoint)
        del tensors[VIDEO_CENTER], tensors[AUDIO_CENTER]
        load_model_tensors(model, tensors)
    return model.eval(), config

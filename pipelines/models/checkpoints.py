"""A checkpoint: the folder from which training resumes and which evaluation loads.

    model.safetensors   students, teachers, heads, decoders, centers
    optimizer.pt        optimizer state; tensors and numbers alone, read with weights_only
    unsent.json         metrics that MLflow had not received yet, if any
    training.json       step, settings, dataset, MLflow run, and the size of each file

The step is the feed's only state, because each step takes one global batch. Random state is not
kept, because every random number follows from (seed, epoch, clip id). A checkpoint is written at a
temporary name, synced, and renamed, so it exists whole or not at all; in a bucket, `training.json`
appears last. A folder whose files differ in size from what `training.json` says, such as a partial
copy, counts as incomplete and is never loaded.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipelines.config.base import Datasets
from pipelines.config.pretrain import PretrainConfig
from pipelines.errors import UserError
from pipelines.files import replacing
from pipelines.filesystems import store_failure
from pipelines.storage import AnyPath, path_of, remove_tree, size_of
from pipelines.transfers import on_disk
from xkd_core.xkd import XKD, build_xkd, load_model_tensors

FORMAT_VERSION = 1
MODEL_FILE = "model.safetensors"
_OPTIMIZER_FILE = "optimizer.pt"
UNSENT_IN_CHECKPOINT = "unsent.json"
TRAINING_FILE = "training.json"
VIDEO_CENTER = "centers.video"
AUDIO_CENTER = "centers.audio"


@dataclass(frozen=True)
class TrainingInfo:
    """What a checkpoint says about its training."""

    next_step: int
    total_steps: int
    steps_per_epoch: float
    config: dict[str, Any]
    """A `PretrainConfig` as JSON."""
    dataset_id: str
    run_id: str
    """The MLflow run that a resumed training continues."""
    code_version: str
    exclude_sha256: str | None = None
    """Hash of the excluded clip ids (`clip_ids_sha256`); None in checkpoints of older versions."""
    order_sha256: str | None = None
    """`ClipIndex.order_sha256` of the dataset; None in checkpoints of older versions."""
    health: Sequence[Mapping[str, float]] = ()
    """The latest health records, from which a collapse is detected."""
    began_from: Mapping[str, Any] | None = None
    """The weights that the training began from: `InitialWeights.origins`; None for new ones."""
    format_version: int = FORMAT_VERSION


def checkpoint_name(next_step: int) -> str:
    """The folder name of the checkpoint that resumes at `next_step`."""
    return f"step_{next_step:09d}"


def save_checkpoint(
    folder: AnyPath,
    tensors: dict[str, torch.Tensor],
    optimizer_state: dict[str, Any],
    info: TrainingInfo,
    unsent: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes a checkpoint, replacing one of the same name.

    Raises:
        OSError: If it cannot be written; no part of it stays.
    """
    try:
        with replacing(folder, last=TRAINING_FILE) as partial:
            partial.mkdir(parents=True)
            _write_files(partial, tensors, optimizer_state, info, unsent)
    except (SafetensorError, RuntimeError) as error:  # how these libraries report an OSError
        raise OSError(str(error)) from error


def _write_files(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    optimizer_state: dict[str, Any],
    info: TrainingInfo,
    unsent: Sequence[Mapping[str, Any]],
) -> None:
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / MODEL_FILE)
    with (folder / _OPTIMIZER_FILE).open("wb") as file:
        torch.save(optimizer_state, file)
    if unsent:
        (folder / UNSENT_IN_CHECKPOINT).write_text(json.dumps(list(unsent)))
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    values = {**asdict(info), "files": sizes}
    (folder / TRAINING_FILE).write_text(json.dumps(values, indent=1))


def is_complete(folder: AnyPath) -> bool:
    """Whether a folder is a checkpoint whose files all have their full size."""
    try:
        values = json.loads((folder / TRAINING_FILE).read_text())
        sizes = values["files"]
        return all(size_of(folder / name) == size for name, size in sizes.items())
    except FileNotFoundError:
        return False
    except OSError as error:
        if isinstance(folder, Path):
            return False
        # A store that is away must not make a training begin anew.
        raise UserError(f"({folder}) cannot be read: {store_failure(error)}") from error
    except UserError:
        raise
    except (ValueError, KeyError, TypeError):
        return False


def find_checkpoint(path: str) -> AnyPath:
    """The checkpoint at `path`, or the newest complete one of the folder of a run.

    That is the folder of a training, or of the main job, which holds its training:

        runs/smoke/pretrain/smoke/step_000000422

    Raises:
        UserError: If there is none.
    """
    folder = path_of(path)
    if is_complete(folder):
        return folder
    if not folder.is_dir():
        raise UserError(f"checkpoint ({path}) does not exist")
    found = newest_checkpoint(folder)
    inner = folder / "pretrain" / folder.name
    if found is None and inner.is_dir():
        found = newest_checkpoint(inner)
    if found is None:
        raise UserError(f"checkpoint ({path}) holds no complete checkpoint")
    return found


def newest_checkpoint(folder: AnyPath) -> AnyPath | None:
    """The complete checkpoint with the most steps in a run's folder."""
    found = [path for path in folder.glob("[!.]*") if is_complete(path)]
    return max(found, key=lambda path: read_info(path).next_step, default=None)


def remove_other_checkpoints(folder: AnyPath, keep: set[AnyPath]) -> None:
    """Removes what killed trainings left: partial checkpoints, and whole ones not in `keep`."""
    for path in folder.glob("step_*"):
        if path not in keep:
            remove_tree(path)
    for path in folder.glob(".step_*.tmp"):
        remove_tree(path)


def read_info(folder: AnyPath) -> TrainingInfo:
    """What a checkpoint says about its training.

    Raises:
        UserError: If it was written in another format.
    """
    values = json.loads((folder / TRAINING_FILE).read_text())
    del values["files"]
    if values.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"checkpoint ({folder}) has format {values.get('format_version')}, "
            f"but this version reads format {FORMAT_VERSION}"
        )
    return TrainingInfo(**values)


def check_dataset(folder: AnyPath, dataset: Datasets, dataset_id: str) -> None:
    """Checks that a training resumed from a checkpoint gets the same clips.

    Raises:
        UserError: If the dataset has changed since the checkpoint was written.
    """
    trained_on = read_info(folder).dataset_id
    if trained_on != dataset_id:
        raise UserError(
            f"checkpoint ({folder}) was trained on dataset {trained_on}, "
            f"but dataset ({dataset}) is {dataset_id} now: take another name or restore the dataset"
        )


def read_unsent(folder: AnyPath) -> list[dict[str, Any]]:
    """Metrics from before the checkpoint that MLflow had not received."""
    file = folder / UNSENT_IN_CHECKPOINT
    return json.loads(file.read_text()) if file.exists() else []


def load_tensors(folder: AnyPath) -> dict[str, torch.Tensor]:
    """The tensors of the networks and the centers, on the CPU."""
    with on_disk(folder / MODEL_FILE) as file:
        return load_file(file)


def load_optimizer_state(folder: AnyPath) -> dict[str, Any]:
    """The optimizer state, on the CPU; only tensors and numbers are read."""
    with on_disk(folder / _OPTIMIZER_FILE) as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def load_model(checkpoint: AnyPath, *, trained: bool = True) -> tuple[XKD, PretrainConfig]:
    """The networks of a checkpoint, or the same ones with new weights.

    A training that began from weights did not begin with the new ones.
    """
    config = PretrainConfig.model_validate(read_info(checkpoint).config)
    torch.manual_seed(config.seed)
    model = build_xkd(config.model)
    if trained:
        tensors = load_tensors(checkpoint)
        del tensors[VIDEO_CENTER], tensors[AUDIO_CENTER]
        load_model_tensors(model, tensors)
    return model.eval(), config

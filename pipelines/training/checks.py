"""Validation of a training before it starts: clips, checkpoints, settings.

The same name with the same settings resumes from the last checkpoint. Changes that would make it a
different training are refused here, before any worker starts.
"""

import math
from typing import Any

from pipelines.config.changes import changed_settings, differences, with_defaults
from pipelines.config.dotted import flat
from pipelines.config.pretrain import PretrainConfig, clip_mismatch
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.clip_ids import EXCLUDE_SHA256, clip_ids_sha256, read_clip_ids
from pipelines.dataset.joined import open_datasets
from pipelines.errors import UserError
from pipelines.evaluation.choice import unscorable
from pipelines.evaluation.rungs import knn_settings
from pipelines.models.checkpoints import (
    TrainingInfo,
    check_dataset,
    find_checkpoint,
    newest_checkpoint,
    read_info,
)
from pipelines.quantities import counted
from pipelines.storage import AnyPath, path_of
from pipelines.tracking.run_folder import RunFolder
from pipelines.training.feed import make_feed, trainable_rows
from pipelines.training.initial_weights import init_mistakes
from xkd_core.encoders import MODALITIES

_ORDER = "a checkpoint's step is a position in the order of clips"
_SAME_WHEN_RESUMED = {
    "batch_size": _ORDER,
    "seed": _ORDER,
    "epoch_unit": _ORDER,
    "num_lanes": _ORDER,
    "splits": _ORDER,
    "shuffle_window": _ORDER,
    **dict.fromkeys(
        (
            "optimizer.decay_tokens_and_positions",
            "optimizer.layer_decay",
            "optimizer.frozen_video_blocks",
            "optimizer.frozen_audio_blocks",
        ),
        "what the optimizer remembers is kept by these groups",
    ),
}
"""Settings that must equal those of the checkpoint that `resume` names, and the reasons. The model
and the clips must be the same too; other settings may differ."""

EARLIER_SETTINGS = {"epoch_unit": "segment", "num_lanes": 1}
"""Values for trainings older than these settings, whose defaults are different."""


def check_pretrain(config: PretrainConfig) -> list[str]:
    """Returns everything that prevents a training, without starting anything."""
    mistakes = []
    try:
        dataset = open_datasets(config.dataset)
        mistakes += _dataset_mistakes(config, dataset)
        mistakes += knn_mistakes(config, dataset)
        mistakes += checkpoint_mistakes(config, dataset)
    except UserError as error:
        mistakes.append(str(error))
    mistakes += _teacher_mistakes(config) + run_mistakes(config) + init_mistakes(config)
    return list(dict.fromkeys(mistakes))


def training_length(config: PretrainConfig) -> list[str]:
    """Describes the number of steps for `--dry-run`; empty if the clips cannot be read."""
    try:
        feed = make_feed(config, open_datasets(config.dataset), rank=0, world_size=1)
    except UserError:
        return []
    total_steps = math.ceil(config.epochs * feed.steps_per_epoch)
    return [
        f"would train  {counted(total_steps, 'step')}, {feed.steps_per_epoch:,.10g} an epoch: "
        f"one clip of each of {counted(feed.num_clips, config.epoch_unit)}"
    ]


def _teacher_mistakes(config: PretrainConfig) -> list[str]:
    if config.objective.teacher == "moving" or config.init is not None or config.resume is not None:
        return []
    return [
        "objective.teacher (frozen) needs init: a frozen teacher keeps the weights that it begins "
        "with, and without init these are random"
    ]


def _dataset_mistakes(config: PretrainConfig, dataset: ClipDataset) -> list[str]:
    problem = clip_mismatch(config, frame_rate=dataset.frame_rate, sample_rate=dataset.sample_rate)
    if problem:
        return [problem]
    if config.exclude is not None and not _names_a_clip(config.exclude, dataset):
        return [f"exclude ({config.exclude}) names no clip of dataset ({config.dataset})"]
    return clip_mistakes(config, dataset)


def clip_mistakes(config: PretrainConfig, dataset: ClipDataset) -> list[str]:
    """Returns why no clip of a dataset could be trained on."""
    exclude = read_clip_ids(config.exclude) if config.exclude else ()
    if len(trainable_rows(dataset, config.splits, exclude)):
        return []
    has_picture, has_sound = dataset.index.num_frames > 0, dataset.index.has_audio
    only_picture, only_sound = (has_picture & ~has_sound).sum(), (has_sound & ~has_picture).sum()
    splits = " or ".join(config.splits)
    return [
        f"dataset ({config.dataset}) has no clip with picture and sound in split {splits}: of its "
        f"{counted(dataset.num_clips, 'clip')}, {only_picture} have a picture alone and "
        f"{only_sound} have sound alone; one modality teaches the other"
    ]


def _names_a_clip(exclude: str, dataset: ClipDataset) -> bool:
    """Whether a list is empty or names clips of this dataset, as a list of leaks must."""
    ids = read_clip_ids(exclude)
    return not ids or bool(dataset.index.clip_id.isin(ids).any())


def knn_mistakes(config: PretrainConfig, trained_on: ClipDataset) -> list[str]:
    """Returns why `health.knn` could not score any clip during training."""
    knn = config.health.knn
    if knn is None:
        return []
    what = f"health.knn.dataset ({knn.dataset})" if knn.dataset else f"dataset ({config.dataset})"
    try:
        dataset = open_datasets(knn.dataset) if knn.dataset else trained_on
    except UserError as error:
        return [f"health.knn: {error}"]
    problem = clip_mismatch(config, frame_rate=dataset.frame_rate, sample_rate=dataset.sample_rate)
    if problem:  # reported with the training clips if these are the same
        return [f"{what}: {problem}"] if knn.dataset else []
    problems = [unscorable(dataset, knn_settings(config), modality) for modality in MODALITIES]
    return [f"health.knn: {what} gives no score: {problems[0]}"] if all(problems) else []


def checkpoint_mistakes(config: PretrainConfig, dataset: ClipDataset) -> list[str]:
    """Returns why the training cannot resume; otherwise each worker would fail on its own."""
    own = newest_checkpoint(path_of(config.output) / config.name)
    try:
        if own is not None:
            check_dataset(own, config.dataset, dataset.dataset_id)
            info = read_info(own)
            _check_clip_order(own, config, dataset, info)
            excluded = _exclude_mistakes(config, info.exclude_sha256)
            return excluded + _order_mistakes(config, own, info) + _unheeded_resume(config, own)
        if config.resume is not None:
            resumed = find_checkpoint(config.resume)
            check_dataset(resumed, config.dataset, dataset.dataset_id)
            info = read_info(resumed)
            _check_clip_order(resumed, config, dataset, info)
            return _resume_mistakes(config, dataset, info)
    except UserError as error:
        return [str(error)]
    return []


def _check_clip_order(
    checkpoint: AnyPath, config: PretrainConfig, dataset: ClipDataset, info: TrainingInfo
) -> None:
    """Refuses the same clips in other shards, whose order would repeat some and leave out others.

    Checkpoints of older versions do not tell the order of their clips.
    """
    if info.order_sha256 not in (None, dataset.index.order_sha256):
        raise UserError(
            f"checkpoint ({checkpoint}) was trained on the clips of dataset ({config.dataset}) in "
            "other shards, which give another order: restore the dataset as it was, or take "
            "another name"
        )


def _order_mistakes(config: PretrainConfig, own: AnyPath, info: TrainingInfo) -> list[str]:
    """Returns why a run cannot resume its own checkpoint, also if its `run.json` is lost."""
    if _run_file(config):  # reported with all other changes
        return []
    there = EARLIER_SETTINGS | info.config
    return [
        f"{name} ({getattr(config, name)}) must be {there[name]}, as in checkpoint {own}: "
        f"{_ORDER}. Take {name}={there[name]} or another name"
        for name in EARLIER_SETTINGS
        if there[name] != getattr(config, name)
    ]


def _unheeded_resume(config: PretrainConfig, own: AnyPath) -> list[str]:
    """Returns why `resume` has no effect: it only applies when a run starts."""
    if config.resume is None or config.resume == _run_file(config).get("config", {}).get("resume"):
        return []
    if find_checkpoint(config.resume).resolve() == own.resolve():
        return []
    return [
        f"resume ({config.resume}) would do nothing: the run {config.name} has checkpoints of its "
        f"own and resumes from the newest, {own}. Take another name to start from resume"
    ]


def _resume_mistakes(config: PretrainConfig, dataset: ClipDataset, info: TrainingInfo) -> list[str]:
    """Returns why a training cannot start from the checkpoint of another one."""
    what = f"resume ({config.resume})"
    # Other settings that its version did not have get their defaults.
    there = PretrainConfig.model_validate(EARLIER_SETTINGS | info.config).model_dump(mode="json")
    here = config.model_dump(mode="json")
    mistakes = [
        f"{what} has another model: {text}"
        for text in differences(flat(there["model"]), flat(here["model"]))
    ]
    old, new = flat(there), flat(here)
    mistakes += [
        f"{what} has another {name}: it is {old[name]} there and {new[name]} here, and {why}"
        for name, why in _SAME_WHEN_RESUMED.items()
        if old[name] != new[name]
    ]
    if info.exclude_sha256 not in (None, clip_ids_sha256(config.exclude)):
        mistakes.append(f"{what} left out other clips than exclude ({config.exclude}); {_ORDER}")
    return mistakes or _no_steps_left(config, dataset, info)


def _no_steps_left(config: PretrainConfig, dataset: ClipDataset, info: TrainingInfo) -> list[str]:
    feed = make_feed(config, dataset, rank=0, world_size=1)
    total_steps = math.ceil(config.epochs * feed.steps_per_epoch)
    if info.next_step < total_steps:
        return []
    return [
        f"resume ({config.resume}) has done {counted(info.next_step, 'step')}, but "
        f"epochs ({config.epochs:g}) are {counted(total_steps, 'step')} of {config.batch_size} of "
        f"{counted(feed.num_clips, 'clip')} (one of each "
        f"{config.epoch_unit}): none would be left"
    ]


def run_mistakes(config: PretrainConfig) -> list[str]:
    """Returns why the run of this name cannot resume with these settings."""
    there = _run_file(config)
    if not there:
        return []
    began_with = with_defaults(PretrainConfig, EARLIER_SETTINGS | there["config"])
    changes = changed_settings(PretrainConfig, began_with, config.model_dump(mode="json"))
    if not changes:
        return _exclude_mistakes(config, there.get(EXCLUDE_SHA256))
    return [
        f"name ({config.name}) is a run in {config.output} with other settings: "
        f"{'; '.join(changes)}. Take another name or the same settings"
    ]


def _run_file(config: PretrainConfig) -> dict[str, Any]:
    """Returns what the run of this name started with; empty if there is none."""
    return RunFolder(path_of(config.output) / config.name).began_with


def _exclude_mistakes(config: PretrainConfig, began_with: str | None) -> list[str]:
    """Returns why `exclude` differs from that of the run; other ids change the order of clips."""
    try:
        now = clip_ids_sha256(config.exclude)
    except UserError as error:
        return [str(error)]
    if began_with in (None, now):
        return []
    return [
        f"exclude ({config.exclude}) names other clips than when the run {config.name} began. "
        "Take another name or the same list"
    ]

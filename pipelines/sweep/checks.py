"""Checks of a sweep before it starts: its clips, its scores, its resources."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.config.base import Datasets
from pipelines.config.changes import changed_settings, with_defaults
from pipelines.config.pretrain import clip_mismatch
from pipelines.config.sweep import SweepConfig
from pipelines.dataset.joined import open_datasets
from pipelines.errors import UserError
from pipelines.evaluation.choice import split_scored_on, unretrievable, unscorable
from pipelines.quantities import byte_size, counted
from pipelines.storage import AnyPath, path_of
from pipelines.sweep.init_versions import INIT_VERSIONS, replaced
from pipelines.sweep.run_trial import pretrain_values, trial_config
from pipelines.sweep.search import num_trials
from pipelines.sweep.space import edge_cases, settings_of
from pipelines.sweep.trial_files import Trial
from pipelines.tracking.run_folder import RunFolder
from pipelines.training.checks import EARLIER_SETTINGS, check_pretrain
from xkd_core.config import MethodConfig
from xkd_core.health import MIN_CLIPS

_OF_CLIPS = ("exclude", "splits", "model.video", "model.audio")
"""Settings that clips must fit, in a space too; also the whole section `model`."""
_OF_WEIGHTS = ("init", "optimizer.frozen_")
"""Settings of a space that weights must fit."""
DATASET_IDS = "dataset_ids"
"""Key of the datasets that a sweep began with, see `dataset_ids`."""


TRIAL_BYTES = 1_500_000_000
"""Memory of a trial's driver and of Ray Train's actors beside it, without its workers; measured."""
_UNKNOWN_MEMORY_TRIALS = 1_000_000
"""Trials that a node is assumed to have memory for if its memory is unknown."""


def sweep_folder(config: SweepConfig) -> AnyPath:
    """Returns the folder with all results of a sweep."""
    return path_of(config.output) / config.name


def dataset_ids(config: SweepConfig) -> dict[str, str]:
    """Returns the ids of the datasets that a sweep trains and scores on, by setting.

    Raises:
        UserError: if one is no clip dataset.
    """
    return {
        name: open_datasets(location).dataset_id for name, location in _locations(config).items()
    }


def _locations(config: SweepConfig) -> dict[str, Datasets]:
    locations = {"dataset": config.dataset, "scoring.dataset": config.scoring.dataset}
    return {name: location for name, location in locations.items() if location is not None}


def check_sweep(config: SweepConfig) -> list[str]:
    """Returns everything that prevents a sweep, except mistakes in its space."""
    folder = sweep_folder(config)
    # Under a name that no trial has, since existing trials have other settings.
    base = trial_config(config, folder, Trial(0, {})).model_copy(update={"name": "base"})
    mistakes = check_pretrain(base)
    mistakes += _scoring_mistakes(config) + _collapse_mistakes(config)
    mistakes += _option_mistakes(config, folder, mistakes)
    if there := RunFolder(folder).began_with:
        versions = there.get(INIT_VERSIONS, {})  # those of `config` are fixed already
        mistakes += _settings_mistakes(config, replaced(there["config"], versions))
        mistakes += _clips_mistakes(config, there.get(DATASET_IDS, {}))
    return mistakes


def _option_mistakes(config: SweepConfig, folder: AnyPath, of_all: Sequence[str]) -> list[str]:
    """Returns why clips do not fit options of the space, without the mistakes `of_all`."""
    found = []
    for key, value, values in edge_cases(config.space):
        names = settings_of(config.space, {key: value})
        if not any(_needs_a_check(name, config) for name in names):
            continue
        option = trial_config(config, folder, Trial(0, values)).model_copy(update={"name": "base"})
        mistakes = check_pretrain(option)
        if config.scoring.dataset and (problem := _rates_mistake(config.scoring.dataset, option)):
            mistakes.append(problem)
        found += [f"space.{key} at {value}: {text}" for text in mistakes if text not in of_all]
    return found


def _needs_a_check(name: str, config: SweepConfig) -> bool:
    """Whether a setting must fit clips or weights, which only its check can tell."""
    is_begun = config.pretrain.init is not None
    must_fit = (*_OF_CLIPS, *_OF_WEIGHTS, *(("model.",) if is_begun else ()))
    return name == "model" or name.startswith(must_fit)


def _rates_mistake(scoring_dataset: Datasets, method: MethodConfig) -> str | None:
    """Returns why the clips for scoring do not fit a method, or None."""
    try:
        dataset = open_datasets(scoring_dataset)
    except UserError:
        return None
    problem = clip_mismatch(method, frame_rate=dataset.frame_rate, sample_rate=dataset.sample_rate)
    return f"scoring.dataset ({scoring_dataset}): {problem}" if problem else None


def _settings_mistakes(config: SweepConfig, began_with: Mapping[str, Any]) -> list[str]:
    """Returns why a sweep cannot continue with these settings."""
    there = with_defaults(
        SweepConfig, {**began_with, "pretrain": EARLIER_SETTINGS | began_with["pretrain"]}
    )
    changes = changed_settings(SweepConfig, there, config.model_dump(mode="json"))
    if not changes:
        return []
    return [
        f"name ({config.name}) is a sweep in {config.output} with other settings: "
        f"{'; '.join(changes)}. Take another name or the same settings"
    ]


def _clips_mistakes(config: SweepConfig, began_with: Mapping[str, str]) -> list[str]:
    """Returns why a sweep cannot continue with these clips: each trial would fail."""
    try:
        now = dataset_ids(config)
    except UserError:
        return []  # reported already
    return [
        f"name ({config.name}) is a sweep in {config.output} whose trials must all see the same "
        f"clips: it began with dataset {began_with[name]}, but {name} ({location}) is {now[name]} "
        "now. Take another name or restore those clips"
        for name, location in _locations(config).items()
        if began_with.get(name, now[name]) != now[name]
    ]


def _scoring_mistakes(config: SweepConfig) -> list[str]:
    """Returns why the clips for scoring give no objective."""
    location = config.scoring.dataset or config.dataset
    try:
        dataset = open_datasets(location)
    except UserError as error:
        return [str(error)] if config.scoring.dataset else []
    problem = clip_mismatch(
        config.pretrain, frame_rate=dataset.frame_rate, sample_rate=dataset.sample_rate
    )
    if problem:  # the checks of the training report it for the training clips
        return [f"scoring.dataset ({location}): {problem}"] if config.scoring.dataset else []
    modality = config.objective.modality
    sides = ("video", "audio") if modality in ("mean", "both") else (modality,)
    if config.objective.measure == "retrieval":
        problem = unretrievable(dataset, config.scoring)
        return [f"dataset ({location}) gives no score of retrieval: {problem}"] if problem else []
    return [
        f"dataset ({location}) gives no {side} score: {problem}"
        for side in sides
        if (problem := unscorable(dataset, config.scoring, side))
    ]


def _collapse_mistakes(config: SweepConfig) -> list[str]:
    """Returns why a collapse could not be detected, although it should end a trial."""
    if not config.stopping.collapsed:
        return []
    num_workers = config.pretrain.worker_range[1]
    for values in ({}, *(values for _, _, values in edge_cases(config.space))):
        trial = pretrain_values(config, Trial(0, values))
        batch_size, parts = trial["batch_size"], trial["accumulation_steps"]
        num_clips = batch_size // (num_workers * parts)
        if num_clips < MIN_CLIPS:
            return [
                f"stopping.collapsed (True) needs {MIN_CLIPS} clips that a worker takes at once, "
                f"but batch_size ({batch_size}) over num_workers ({num_workers}) and "
                f"accumulation_steps ({parts}) gives {num_clips}: take a larger batch_size or "
                "stopping.collapsed=false"
            ]
    return []


def scored_split(config: SweepConfig) -> str:
    """Returns the split that trials are scored on: the first that the dataset has."""
    dataset = open_datasets(config.scoring.dataset or config.dataset)
    return split_scored_on(dataset, config.scoring) or ""


def trial_bundles(config: SweepConfig) -> list[dict[str, float]]:
    """Returns what one trial needs, each part on one node."""
    worker = {"CPU": config.pretrain.cpus_per_worker or 1.0}
    if config.pretrain.use_gpu:
        worker["GPU"] = 1.0
    return [{"memory": float(TRIAL_BYTES)}, *[worker] * config.pretrain.worker_range[1]]


def trials_at_once(config: SweepConfig, nodes: Iterable[Mapping[str, float]]) -> int:
    """Returns how many trials run at once on nodes with these resources; memory may be unknown.

    Raises:
        UserError: if none fits, or fewer than `max_concurrent_trials`.
    """
    nodes = list(nodes)
    cpus = config.pretrain.cpus_per_worker or 1.0
    workers = config.pretrain.worker_range[1]
    num_workers_fit = sum(
        int(
            min(
                node.get("CPU", 0.0) // cpus,
                node.get("GPU", 0.0) if config.pretrain.use_gpu else float("inf"),
            )
        )
        for node in nodes
    )
    memory = [node.get("memory", TRIAL_BYTES * _UNKNOWN_MEMORY_TRIALS) for node in nodes]
    drivers = sum(int(amount // TRIAL_BYTES) for amount in memory)
    fit = min(num_workers_fit // workers, drivers)
    is_memory_short = drivers < num_workers_fit // workers
    kinds = {"CPU": cpus} | ({"GPU": 1.0} if config.pretrain.use_gpu else {})
    have = ", ".join(counted(sum(node.get(kind, 0.0) for node in nodes), kind) for kind in kinds)
    one = " and ".join(f"{workers} x {counted(amount, kind)}" for kind, amount in kinds.items())
    if is_memory_short:
        have += f", {byte_size(sum(memory))} of memory"
        one += f" and {byte_size(TRIAL_BYTES)} of memory"
    if not fit:
        raise UserError(f"a trial needs {one}, but Ray has {have}")
    wanted = config.max_concurrent_trials
    if wanted is not None and wanted > fit:
        needs = " and ".join(
            f"{wanted} x {counted(workers * amount, kind)}" for kind, amount in kinds.items()
        )
        if is_memory_short:
            needs += f" and {wanted} x {byte_size(TRIAL_BYTES)} of memory"
        raise UserError(
            f"max_concurrent_trials ({wanted}) needs {needs}, has {have}: "
            f"at most {counted(fit, 'trial')} at once"
        )
    return min(fit, wanted or fit, num_trials(config))

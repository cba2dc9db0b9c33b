"""Pretraining on Ray Train, the driver's side: a clip dataset becomes a run of checkpoints.

A run is its name: the same name with the same settings goes on from the last checkpoint, in the
same MLflow run, with the clips it would have seen; with other settings it is refused. Whatever
stops a training in order (SIGTERM, Ctrl-C, `max_seconds`) leaves a checkpoint of the last step
done. What each worker does is in `train_loop.py`.

Method: XKD, arXiv:2211.13929, sections 3 and 4.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray import train
from ray.train.torch import TorchTrainer

from pipelines.checkpoints import (
    TrainingInfo,
    check_dataset,
    find_checkpoint,
    newest_checkpoint,
    read_info,
)
from pipelines.clip_dataset import ClipDataset
from pipelines.clip_ids import clip_ids_sha256, read_clip_ids
from pipelines.config import PretrainConfig, clip_mismatch
from pipelines.errors import JobFailed, Stopped, UserError
from pipelines.progress import OnProgress, watched_board
from pipelines.rungs import RungPlan
from pipelines.shards import locked, write_json
from pipelines.stopping import Stop, StoppableTorchConfig
from pipelines.tracking import RunRef, flat, kept_settings, log_dataset, open_run, tracked
from pipelines.train_loop import make_feed, train_loop_per_worker

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
EXCLUDE_SHA256 = "exclude_sha256"
LOCK_FILE = ".lock"
TRIAL_PATIENCE_SECONDS = 60.0
FREE_TO_CHANGE = (
    "tracking",
    "ray",
    "num_workers",
    "parallelism",
    "activation_checkpointing",
    "use_gpu",
    "cpus_per_worker",
    "resume",
    "log_every",
    "checkpoint_every",
    "checkpoints_kept",
    "max_failures",
    "max_seconds",
)
"""Settings that may differ when a run goes on: they change nothing in what is computed."""


@dataclass(frozen=True)
class PretrainResult:
    """What came out of a training."""

    checkpoint: Path
    run: RunRef
    total_steps: int
    first_step: int
    clips_per_second: float
    """Over the steps of this call; NaN if none was left to do."""


def check_pretrain(config: PretrainConfig) -> list[str]:
    """All that stands in the way of a training, found without starting anything."""
    mistakes = []
    try:
        dataset = ClipDataset.open(config.dataset)
        mistakes += _dataset_mistakes(config, dataset)
        mistakes += _checkpoint_mistakes(config, dataset)
    except UserError as error:
        mistakes.append(str(error))
    if config.resume is not None:
        try:
            mistakes += _resume_mistakes(config, read_info(find_checkpoint(config.resume)))
        except UserError as error:
            mistakes.append(str(error))
    mistakes += run_mistakes(config)
    return list(dict.fromkeys(mistakes))


def _dataset_mistakes(config: PretrainConfig, dataset: ClipDataset) -> list[str]:
    problem = clip_mismatch(config, frame_rate=dataset.frame_rate, sample_rate=dataset.sample_rate)
    if problem:
        return [problem]
    if config.exclude is not None and not _names_a_clip(config.exclude, dataset):
        return [f"exclude ({config.exclude}) names no clip of dataset ({config.dataset})"]
    if not make_feed(config, dataset, rank=0, world_size=1).num_clips:
        splits = ", ".join(config.splits)
        return [f"dataset ({config.dataset}) has no clip with picture and sound in split {splits}"]
    return []


def _names_a_clip(exclude: str, dataset: ClipDataset) -> bool:
    """Whether a list is empty or about this dataset; one of another dataset would leave leaks."""
    ids = read_clip_ids(exclude)
    return not ids or not ids.isdisjoint(dataset.index.clip_id.tolist())


def _resume_mistakes(config: PretrainConfig, info: TrainingInfo) -> list[str]:
    there, here = info.config["model"], config.model_dump(mode="json")["model"]
    return [f"resume ({config.resume}) has another model: {text}" for text in _changes(there, here)]


def _checkpoint_mistakes(config: PretrainConfig, dataset: ClipDataset) -> list[str]:
    """Why training cannot go on from where it would; workers would find out one after the other."""
    own = newest_checkpoint(Path(config.output) / config.name)
    try:
        if own is not None:
            check_dataset(own, config.dataset, dataset.dataset_id)
            return _exclude_mistakes(config, read_info(own).exclude_sha256)
        if config.resume is not None:
            resumed = find_checkpoint(config.resume)
            check_dataset(resumed, config.dataset, dataset.dataset_id)
    except UserError as error:
        return [str(error)]
    return []


def run_mistakes(config: PretrainConfig) -> list[str]:
    """Why a run of this name cannot go on with these settings."""
    file = Path(config.output) / config.name / RUN_FILE
    if not file.exists():
        return []
    there = json.loads(file.read_text())
    changes = _changes(there["config"], config.model_dump(mode="json"))
    if not changes:
        return _exclude_mistakes(config, there.get(EXCLUDE_SHA256))
    return [
        f"name ({config.name}) is a run in {config.output} with other settings: "
        f"{'; '.join(changes)}. Take another name or the same settings"
    ]


def _exclude_mistakes(config: PretrainConfig, began_with: str | None) -> list[str]:
    """Why the list of clips left out is not that of the run; other ids make another order."""
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


def _changes(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    old, new = flat(there), flat(here)
    return [
        f"{name} is {old.get(name)} there and {new.get(name)} here"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name.split(".")[0] not in FREE_TO_CHANGE
    ]


def pretrain(
    config: PretrainConfig,
    *,
    on_progress: OnProgress,
    parent: RunRef | None = None,
    rungs: RungPlan | None = None,
    callbacks: Sequence[train.UserCallback] = (),
) -> PretrainResult:
    """Trains, or goes on training; Ray is connected and `check_pretrain` found nothing.

    Args:
        config: What to train.
        on_progress: Called as it goes on.
        parent: The MLflow run that this one is part of.
        rungs: When to score the features on the way, for a sweep.
        callbacks: Ray Train's, called at each checkpoint.

    Raises:
        UserError: if the workers ask for more than Ray has, or the run is one with other settings
            or of other clips, or another process is at it.
        JobFailed: if workers died more often than `max_failures`, the loss was not finite, or a
            checkpoint could not be written.
        Stopped: if SIGTERM at a worker or `max_seconds` ended it early.
        KeyboardInterrupt: after Ctrl-C, once the workers have stopped with a checkpoint; a second
            one does not wait for them.
    """
    started = time.time()
    folder = Path(config.output) / config.name
    folder.mkdir(parents=True, exist_ok=True)
    # A trial's earlier driver may outlive a sweep that was killed by seconds.
    patience = TRIAL_PATIENCE_SECONDS if rungs else 0.0
    with locked(folder / LOCK_FILE, f"run ({folder})", patience_seconds=patience):
        dataset = ClipDataset.open(config.dataset)
        # Again, for callers that make up the settings themselves: a finished training of other
        # settings would be taken for this one.
        if mistakes := run_mistakes(config) or _checkpoint_mistakes(config, dataset):
            raise UserError(mistakes[0])
        scaling = _scaling(config)
        with tracked(_open_run(config, folder, parent)) as run:
            log_dataset(
                run,
                dataset_id=dataset.dataset_id,
                path=config.dataset,
                num_clips=dataset.num_clips,
                context="training",
            )
            with watched_board(on_progress) as board:
                values = {
                    "config": kept_settings(config),  # goes into checkpoints; `run` has the server
                    EXCLUDE_SHA256: clip_ids_sha256(config.exclude),
                    "run": asdict(run),
                    "board": board,
                    "deadline": started + config.max_seconds if config.max_seconds else None,
                    "rungs": asdict(rungs) if rungs else None,
                }
                outcome = _fit_unless_interrupted(
                    lambda: _fit(config, scaling, values, callbacks), board.ask_to_stop.remote
                )
            _check_outcome(outcome, config, folder)
            return PretrainResult(
                checkpoint=find_checkpoint(str(folder)),
                run=run,
                total_steps=outcome["total_steps"],
                first_step=outcome["first_step"],
                clips_per_second=outcome["clips_per_second"],
            )


def _fit_unless_interrupted(
    fit: Callable[[], dict[str, Any]], ask_to_stop: Callable[[], object]
) -> dict[str, Any]:
    """Fits in a thread of its own, since Ray Train takes Ctrl-C away from the main thread.

    The first interrupt asks the workers to stop and waits for them; the second one ends the wait.
    """
    outcome: dict[str, Any] = {}
    errors: list[BaseException] = []
    is_over = threading.Event()

    def run() -> None:
        try:
            outcome.update(fit())
        except BaseException as error:  # raised again in the main thread
            errors.append(error)
        finally:
            is_over.set()

    thread = threading.Thread(target=run, daemon=True, name="fit")
    try:
        thread.start()
        # Not `Thread.join`: once interrupted, Python 3.11 takes the thread for finished.
        is_over.wait()
    except KeyboardInterrupt as interrupt:
        logger.warning("stopping after this step, with a checkpoint; once more stops at once")
        ask_to_stop()
        is_over.wait()
        if outcome and not outcome["not_finite"] and not outcome["has_failed"]:
            raise type(interrupt)(_in_words(outcome)) from None
    if errors:
        raise errors[0]
    return outcome


def _check_outcome(outcome: dict[str, Any], config: PretrainConfig, folder: Path) -> None:
    if bad := outcome["not_finite"]:
        raise JobFailed(_not_finite_message(bad[0], bad[1], folder))
    if outcome["has_failed"]:
        raise JobFailed(
            f"a checkpoint could not be written to {folder}: {outcome['failure']}; "
            f"{_last_checkpoint(folder)}. With room to write, the same command goes on from there"
        )
    if outcome["next_step"] < outcome["total_steps"]:
        reason = "a worker got SIGTERM"
        if outcome["stop"] == Stop.TIME_IS_UP:
            reason = f"max_seconds ({config.max_seconds:g}) are over"
        raise Stopped(f"{reason}: {_in_words(outcome)}. The same command goes on from there")


def _in_words(outcome: dict[str, Any]) -> str:
    return f"{outcome['next_step']} of {outcome['total_steps']} steps are done and saved"


def _last_checkpoint(folder: Path) -> str:
    try:
        return f"the last good checkpoint is {find_checkpoint(str(folder))}"
    except UserError:
        return "there is no checkpoint yet"


def _not_finite_message(step: int, terms: list[str], folder: Path) -> str:
    return (
        f"step {step} has a loss that is not finite ({', '.join(terms)}); "
        f"{_last_checkpoint(folder)}. "
        "A lower optimizer.learning_rate or precision=float32 is the usual remedy"
    )


def _open_run(config: PretrainConfig, folder: Path, parent: RunRef | None) -> RunRef:
    file = folder / RUN_FILE
    run_id = json.loads(file.read_text())["run_id"] if file.exists() else ""
    if not run_id and config.resume:
        checkpoint = find_checkpoint(config.resume)
        if checkpoint.parent == folder:  # another training's run is not for this one's metrics
            run_id = read_info(checkpoint).run_id
    run = open_run(config, "pretrain", config.name, parent=parent, run_id=run_id)
    values = {
        "run_id": run.run_id,
        "config": kept_settings(config),
        EXCLUDE_SHA256: clip_ids_sha256(config.exclude),
    }
    write_json(file, values)
    return run


def _scaling(config: PretrainConfig) -> train.ScalingConfig:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_workers: Any = config.num_workers  # a pair is Ray Train's, of which its types know nothing
    return train.ScalingConfig(
        num_workers=num_workers,
        use_gpu=config.use_gpu,
        resources_per_worker=worker_resources(config, nodes),
    )


def worker_resources(
    config: PretrainConfig, nodes: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """What each worker gets of nodes with these resources.

    Raises:
        UserError: if the nodes have no room for the workers, for which Ray would wait for ever.
    """
    least, most = config.worker_range
    cpus = config.cpus_per_worker
    if cpus is None:
        cpus = 1.0 if config.use_gpu else _cpu_share(nodes, most)
    worker = {"CPU": cpus} | ({"GPU": 1.0} if config.use_gpu else {})
    largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    if config.cpus_per_worker is not None and cpus > largest:
        raise UserError(
            f"cpus_per_worker ({cpus:g}) must not be above the {largest:g} CPUs of the largest node"
        )
    # A worker lies on one node: what is left over on several of them adds up to none.
    places = sum(
        min(int(node.get(kind, 0.0) // amount) for kind, amount in worker.items()) for node in nodes
    )
    if places < least:
        needs = " and ".join(f"{least} x {amount:g} {kind}s" for kind, amount in worker.items())
        have = "; ".join(
            ", ".join(f"{node.get(kind, 0.0):g} {kind}s" for kind in worker) for node in nodes
        )
        raise UserError(
            f"num_workers ({least}) needs {needs}, but the nodes of Ray have {have}: "
            f"room for {places}"
        )
    return worker


def _cpu_share(nodes: Sequence[Mapping[str, float]], num_workers: int) -> float:
    """The most CPUs that each of so many workers can have, or 1."""
    cpus = [int(node.get("CPU", 0.0)) for node in nodes]
    fitting = (
        share
        for share in range(max(cpus, default=1), 1, -1)
        if sum(have // share for have in cpus) >= num_workers
    )
    return float(next(fitting, 1))


def _fit(
    config: PretrainConfig,
    scaling: train.ScalingConfig,
    values: dict[str, Any],
    callbacks: Sequence[train.UserCallback],
) -> dict[str, Any]:
    # Typed by Ray as without a result; what rank 0 returns is the result's `return_value`.
    loop: Any = train_loop_per_worker
    trainer = TorchTrainer(
        loop,
        train_loop_config=values,
        torch_config=StoppableTorchConfig(),
        scaling_config=scaling,
        run_config=train.RunConfig(
            name=config.name,
            storage_path=config.output,
            failure_config=train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=train.CheckpointConfig(num_to_keep=config.checkpoints_kept),
            callbacks=list[Any](callbacks),  # typed by Ray as Tune's
        ),
    )
    try:
        result: Any = trainer.fit()
    except train.TrainingFailedError as error:
        reason = str(error).strip().splitlines()[-1][:300]
        raise JobFailed(
            f"training failed more than max_failures ({config.max_failures}) times: {reason}. "
            "The same command goes on from the last checkpoint"
        ) from error
    outcome: dict[str, Any] = result.return_value
    return outcome

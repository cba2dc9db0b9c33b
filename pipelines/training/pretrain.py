"""Pretraining on Ray Train, driver side: turns a clip dataset into a run of checkpoints.

A run is identified by its name. The same name with the same settings resumes from the last
checkpoint, in the same MLflow run, with the clips that come next; other settings are refused. An
orderly stop (SIGTERM, Ctrl-C, `max_seconds`) leaves a checkpoint of the last completed step.
`checks.py` validates a training before it starts, `loop.py` is what each worker runs.

Method: XKD, arXiv:2211.13929, sections 3 and 4.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from ray import train
from ray.train.torch import TorchTrainer

from pipelines.config.base import settings_without_password
from pipelines.config.pretrain import PretrainConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.clip_ids import EXCLUDE_SHA256, clip_ids_sha256
from pipelines.dataset.joined import open_datasets
from pipelines.errors import JobFailed, UserError
from pipelines.evaluation.rungs import RungPlan
from pipelines.models.checkpoints import find_checkpoint, read_info
from pipelines.nodes import wait_for_nodes
from pipelines.progress import OnProgress, watched_board
from pipelines.redaction import redacted
from pipelines.shared import check_shared
from pipelines.storage import AnyPath, path_of, ray_storage
from pipelines.tracking.code_version import code_version
from pipelines.tracking.run_folder import RunFolder
from pipelines.tracking.runs import RunRef, log_dataset, log_origins, tracked
from pipelines.tracking.server import tracking_uri
from pipelines.training.checks import (
    checkpoint_mistakes,
    clip_mistakes,
    knn_mistakes,
    run_mistakes,
)
from pipelines.training.initial_weights import (
    InitialWeights,
    discard_weights,
    prepare_weights,
)
from pipelines.training.interrupts import fit_unless_interrupted
from pipelines.training.loop import train_loop_per_worker
from pipelines.training.outcome import (
    TrainOutcome,
    check_outcome,
    completed_outcome,
    leaving_text,
    warn_of_unsent,
)
from pipelines.training.resources import least_bundles, worker_resources
from pipelines.training.stopping import StoppableTorchConfig

logger = logging.getLogger(__name__)

_TRIAL_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class PretrainResult:
    """Result of a training."""

    checkpoint: AnyPath
    run: RunRef
    total_steps: int
    first_step: int
    clips_per_second: float
    """Throughput of this call; NaN if no step was left."""
    began_from: Mapping[str, Mapping[str, str]]
    """The weights that it began from (`InitialWeights.origins`); empty for new ones."""


def pretrain(
    config: PretrainConfig,
    *,
    on_progress: OnProgress,
    parent: RunRef | None = None,
    rungs: RungPlan | None = None,
    callbacks: Sequence[train.UserCallback] = (),
) -> PretrainResult:
    """Starts or resumes a training. Ray must be connected and `check_pretrain` must have passed.

    Args:
        config: Settings of the training.
        on_progress: Called with the progress.
        parent: MLflow run that this one belongs to.
        rungs: When a sweep scores the features during training.
        callbacks: Callbacks of Ray Train, called at each checkpoint.

    Raises:
        UserError: If the workers need more than Ray has, the run has other settings or other clips,
            or another process runs it.
        JobFailed: If workers died more than `max_failures` times, a loss is not finite, or a
            checkpoint could not be written.
        Stopped: If SIGTERM at a worker or `max_seconds` ended the training early.
        KeyboardInterrupt: After Ctrl-C, once the workers have saved a checkpoint and stopped; at
            once after a second Ctrl-C.
    """
    started = time.time()
    run_folder = RunFolder(path_of(config.output) / config.name)
    folder = run_folder.path
    # The driver of a trial may outlive a killed sweep by some seconds.
    patience = _TRIAL_PATIENCE_SECONDS if rungs else 0.0
    with run_folder.locked(patience_seconds=patience):
        dataset = open_datasets(config.dataset)
        _check_again(config, dataset)
        check_shared(str(run_folder.path))
        outcome = None if rungs else completed_outcome(run_folder, _server(config, parent))
        scaling = _scaling(config) if outcome is None else None
        initial = _initial_weights(config, parent)
        with tracked(_open_run(config, run_folder, parent)) as run:
            _log_clips(run, dataset)
            if initial is not None:
                log_origins(run, initial.origins)
            if scaling is not None:
                with watched_board(on_progress) as board:
                    values = _worker_values(config, run, board, started, rungs, initial)
                    outcome = fit_unless_interrupted(
                        partial(_fit_where_nodes_stay, config, scaling, values, callbacks),
                        board.ask_to_stop.remote,
                    )
            assert outcome is not None
            warn_of_unsent(folder)
            check_outcome(outcome, config, folder)
            discard_weights(folder)
            return _result(folder, run, outcome)


def _server(config: PretrainConfig, parent: RunRef | None) -> str:
    """Returns the MLflow server of the run."""
    return parent.uri if parent else tracking_uri(config.tracking)


def _log_clips(run: RunRef, dataset: ClipDataset) -> None:
    log_dataset(
        run,
        dataset_id=dataset.dataset_id,
        path=dataset.path,
        num_clips=dataset.num_clips,
        context="training",
    )


def _result(folder: AnyPath, run: RunRef, outcome: TrainOutcome) -> PretrainResult:
    checkpoint = find_checkpoint(str(folder))
    return PretrainResult(
        checkpoint=checkpoint,
        run=run,
        total_steps=outcome.total_steps,
        first_step=outcome.first_step,
        clips_per_second=outcome.clips_per_second,
        began_from=read_info(checkpoint).began_from or {},
    )


def _initial_weights(config: PretrainConfig, parent: RunRef | None) -> InitialWeights | None:
    """Resolves `init`, and says what a user may not expect of it."""
    # A relative default would name another server in a worker of Ray Tune.
    here = config.tracking.model_copy(update={"uri": parent.uri}) if parent else config.tracking
    initial = prepare_weights(config, here)
    for remark in initial.remarks if initial else ():
        logger.warning("init: %s", remark)
    return initial


def _check_again(config: PretrainConfig, dataset: ClipDataset) -> None:
    """Refuses settings that are not those the run began with.

    Callers that build settings themselves have not checked them; a finished training with other
    settings would otherwise count as this one.
    """
    if mistakes := [
        *run_mistakes(config),
        *clip_mistakes(config, dataset),
        *checkpoint_mistakes(config, dataset),
        *knn_mistakes(config, dataset),
    ]:
        raise UserError(mistakes[0])


def _worker_values(
    config: PretrainConfig,
    run: RunRef,
    board: Any,
    started: float,
    rungs: RungPlan | None,
    initial: InitialWeights | None,
) -> dict[str, Any]:
    """What each worker is given."""
    return {
        # Goes into checkpoints; `run` has the server.
        "config": settings_without_password(config),
        EXCLUDE_SHA256: clip_ids_sha256(config.exclude),
        # Workers of a cluster run uploaded code, which does not know its commit.
        "code_version": code_version(),
        "run": asdict(run),
        "board": board,
        "deadline": started + config.max_seconds if config.max_seconds else None,
        "rungs": asdict(rungs) if rungs else None,
        "initial": initial.file if initial else None,
        "began_from": initial.origins if initial else None,
    }


def _open_run(config: PretrainConfig, folder: RunFolder, parent: RunRef | None) -> RunRef:
    run_id = ""
    if not folder.run_id and config.resume:
        checkpoint = find_checkpoint(config.resume)
        if checkpoint.parent == folder.path:  # metrics do not go to another training's run
            run_id = read_info(checkpoint).run_id
    keep = {
        "config": settings_without_password(config),
        EXCLUDE_SHA256: clip_ids_sha256(config.exclude),
    }
    return folder.open_run(config, "pretrain", config.name, parent=parent, run_id=run_id, keep=keep)


def _scaling(config: PretrainConfig, leaving: Sequence[str] = ()) -> train.ScalingConfig:
    """Returns the workers' resources, once there are nodes for them."""
    resources = wait_for_nodes(
        lambda nodes: worker_resources(config, nodes),
        least_bundles(config),
        config.ray.wait_seconds,
        leaving,
    )
    num_workers: Any = config.num_workers  # Ray Train also takes a pair, but does not type it
    return train.ScalingConfig(
        num_workers=num_workers,
        use_gpu=config.use_gpu,
        resources_per_worker=resources,
    )


def _fit_where_nodes_stay(
    config: PretrainConfig,
    scaling: train.ScalingConfig,
    values: dict[str, Any],
    callbacks: Sequence[train.UserCallback],
) -> TrainOutcome:
    """Fits, and continues elsewhere whenever a worker's node is about to leave.

    The workers have saved the last step by then. Without other nodes, the training ends as after
    any other stop.
    """
    outcome = _fit(config, scaling, values, callbacks)
    first_step = outcome.first_step
    while outcome.may_move:
        where = leaving_text(outcome.drained)
        logger.warning(
            "a node is about to leave (%s): %s; looking for others", where, outcome.summary_text()
        )
        try:
            scaling = _scaling(config, outcome.drained)
        except UserError as error:
            logger.warning("no other nodes: %s", error)
            break
        logger.warning("continuing elsewhere")
        outcome = _fit(config, scaling, values, callbacks)
    return replace(outcome, first_step=first_step)


def _fit(
    config: PretrainConfig,
    scaling: train.ScalingConfig,
    values: dict[str, Any],
    callbacks: Sequence[train.UserCallback],
) -> TrainOutcome:
    # Ray types the loop as returning None; the value of rank 0 is in `return_value`.
    loop: Any = train_loop_per_worker
    filesystem, storage_path = ray_storage(config.output)
    trainer = TorchTrainer(
        loop,
        train_loop_config=values,
        torch_config=StoppableTorchConfig(),
        scaling_config=scaling,
        run_config=train.RunConfig(
            name=config.name,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=train.CheckpointConfig(num_to_keep=config.checkpoints_kept),
            callbacks=list[Any](callbacks),  # Ray types them as callbacks of Tune
        ),
    )
    try:
        result: Any = trainer.fit()
    except train.TrainingFailedError as error:
        reason = redacted(str(error)).strip().splitlines()[-1][:300]
        raise JobFailed(
            f"training failed more than max_failures ({config.max_failures}) times: {reason}. "
            "The same command continues from the last checkpoint"
        ) from error
    return TrainOutcome(**result.return_value)

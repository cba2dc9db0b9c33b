"""How a training ended: what rank 0 reports and how the driver judges it."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.config.pretrain import PretrainConfig
from pipelines.errors import JobFailed, Stopped, UserError
from pipelines.models.checkpoints import find_checkpoint, newest_checkpoint, read_info
from pipelines.quantities import counted
from pipelines.storage import AnyPath
from pipelines.tracking.run_folder import RunFolder
from pipelines.tracking.tracker import UNSENT_FILE
from pipelines.training.stopping import Stop

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOutcome:
    """Return value of rank 0, sent to the driver as a dictionary."""

    first_step: int
    """Step at which these workers started."""
    next_step: int
    """Step after the last completed one."""
    total_steps: int
    clips_per_second: float
    stop: int
    """A `Stop`: why the training ended before its last step."""
    not_finite: tuple[int, Sequence[str]] | None
    """First step with a loss or gradient that is not finite, and the names of these metrics."""
    has_failed: bool
    """Whether a checkpoint could not be written."""
    failure: str
    """Why it could not be written."""
    drained: Sequence[str] = ()
    """IDs of the workers' nodes that are about to leave."""

    @property
    def may_move(self) -> bool:
        """Whether the training stopped only because nodes leave, with a checkpoint."""
        is_left = self.next_step < self.total_steps
        return self.stop == Stop.DRAINED and is_left and self.is_interrupted_in_order

    @property
    def is_interrupted_in_order(self) -> bool:
        """Whether all completed steps are saved."""
        return not self.not_finite and not self.has_failed

    def summary_text(self) -> str:
        """Describes how far the training got."""
        return f"{self.next_step:,} of {counted(self.total_steps, 'step')} done and saved"


def check_outcome(outcome: TrainOutcome, config: PretrainConfig, folder: AnyPath) -> None:
    """Checks that a training reached its last step.

    Raises:
        JobFailed: If a loss is not finite or a checkpoint could not be written.
        Stopped: If the training stopped early with a checkpoint.
    """
    if outcome.not_finite:
        step, terms = outcome.not_finite
        raise JobFailed(
            f"step {step} has a loss that is not finite ({', '.join(terms)}); "
            f"{_last_checkpoint(folder)}. "
            "Usual remedies: a lower optimizer.learning_rate, precision=float32"
        )
    if outcome.has_failed:
        raise JobFailed(
            f"a checkpoint could not be written to {folder}: {outcome.failure}; "
            f"{_last_checkpoint(folder)}. Free some space; the same command continues from there"
        )
    if outcome.next_step < outcome.total_steps:
        reason = "a worker got SIGTERM"
        if outcome.stop == Stop.TIME_IS_UP:
            reason = f"max_seconds ({config.max_seconds:g}) are over"
        elif outcome.stop == Stop.DRAINED:
            reason = f"a node is about to leave ({leaving_text(outcome.drained)})"
        raise Stopped(f"{reason}: {outcome.summary_text()}. The same command continues from there")


def leaving_text(drained: Sequence[str]) -> str:
    """Names nodes by the beginnings of their IDs, as Ray's own tools do."""
    return ", ".join(node[:12] for node in drained)


def _last_checkpoint(folder: AnyPath) -> str:
    try:
        return f"the last good checkpoint is {find_checkpoint(str(folder))}"
    except UserError:
        return "there is no checkpoint yet"


def warn_of_unsent(folder: AnyPath) -> None:
    """Warns of metrics that MLflow did not receive."""
    if (file := folder / UNSENT_FILE).exists():
        logger.warning(
            "MLflow did not receive all metrics; run the same command to send those in %s", file
        )


def completed_outcome(folder: RunFolder, uri: str) -> TrainOutcome | None:
    """Returns the outcome of a complete training; None if workers have something to do.

    The driver then starts none. More must be true than that the last step is saved:

        last step saved | run FINISHED in MLflow | no unsent metrics  ->  complete
        last step saved | the driver was killed while metrics were sent  ->  a worker sends them

    Args:
        folder: Folder of the run, whose settings are known to be the same.
        uri: MLflow server of its run.
    """
    checkpoint = newest_checkpoint(folder.path)
    if checkpoint is None or (folder.path / UNSENT_FILE).exists():
        return None
    info = read_info(checkpoint)
    is_own = info.run_id == folder.run_id
    if not is_own or info.next_step < info.total_steps or not _is_finished(uri, info.run_id):
        return None
    return TrainOutcome(
        first_step=info.next_step,
        next_step=info.next_step,
        total_steps=info.total_steps,
        clips_per_second=math.nan,
        stop=int(Stop.NO),
        not_finite=None,
        has_failed=False,
        failure="",
    )


def _is_finished(uri: str, run_id: str) -> bool:
    """Whether MLflow has the run as the end of its training left it."""
    try:
        info = MlflowClient(uri).get_run(run_id).info
    except MlflowException:  # away or deleted; opening the run deals with it
        return False
    return info.lifecycle_stage == "active" and info.status == "FINISHED"

"""A training that an earlier call completed: the driver says so without starting workers.

Only if nothing is left for a worker to do, which is more than the last checkpoint:

    last step saved | run FINISHED in MLflow | no unsent metrics  ->  complete
    last step saved | the driver was killed while metrics were sent  ->  a worker sends them
"""

import math

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.models.checkpoints import newest_checkpoint, read_info
from pipelines.tracking.run_folder import RunFolder
from pipelines.tracking.tracker import UNSENT_FILE
from pipelines.training.outcome import TrainOutcome
from pipelines.training.stopping import Stop


def completed_outcome(folder: RunFolder, uri: str) -> TrainOutcome | None:
    """Returns the outcome of a complete training; None if workers have something to do.

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

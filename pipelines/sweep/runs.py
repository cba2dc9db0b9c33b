"""Ends the MLflow runs of trials and sends their remaining metrics, for the driver of a sweep.

A stopped trial is killed, so it can neither end its run nor send what MLflow did not take in time,
and it never runs again.
"""

import json
import logging
import time

from mlflow.exceptions import MlflowException

from pipelines.models.checkpoints import newest_checkpoint, read_unsent
from pipelines.redaction import one_line
from pipelines.storage import AnyPath
from pipelines.sweep.trial_files import Trial, read_trials, trial_folder
from pipelines.tracking.run_folder import RunFolder
from pipelines.tracking.runs import RunRef, close_run
from pipelines.tracking.tracker import UNSENT_FILE, Tracker

logger = logging.getLogger(__name__)

_SEND_PATIENCE_SECONDS = 30.0
"""How long a sweep waits at its end for MLflow to take the remaining metrics."""


def _trial_run(run: RunRef, folder: AnyPath, number: int) -> RunRef | None:
    """Returns the MLflow run of a trial, if it has one."""
    run_id = RunFolder(trial_folder(folder, number)).run_id
    return RunRef(run.uri, run.experiment_id, run_id) if run_id else None


def close_trial(run: RunRef, folder: AnyPath, trial: Trial) -> None:
    """Ends the MLflow run of an ended trial and sends its remaining metrics.

    If the server is away, this only logs warnings.
    """
    child = _trial_run(run, folder, trial.number)
    if child is None:
        return
    _send(child, trial_folder(folder, trial.number), trial, 0.0)
    tags = {"trial": str(trial.number), "status": trial.status, "reason": trial.reason}
    tags |= {f"values.{key}": json.dumps(value) for key, value in trial.values.items()}
    try:
        client = child.client()
        for name, value in tags.items():
            client.set_tag(child.run_id, f"xkd.sweep.{name}", value)
    except MlflowException as error:
        logger.warning("MLflow did not take the tags of %s: %s", trial.name, one_line(error))
    ends = {"completed": "FINISHED", "failed": "FAILED"}
    close_run(child, ends.get(trial.status, "KILLED"))


def close_orphaned_runs(run: RunRef, folder: AnyPath) -> None:
    """Ends child runs still marked as running: the trial was killed, or MLflow was away."""
    try:
        children = run.client().search_runs(
            [run.experiment_id],
            f"tags.`mlflow.parentRunId` = '{run.run_id}' AND attributes.status = 'RUNNING'",
        )
    except MlflowException as error:
        logger.warning(
            "MLflow does not say which runs of %s are open: %s", folder.name, one_line(error)
        )
        return
    ended = {
        child.run_id: trial
        for trial in read_trials(folder)
        if trial.status != "running" and (child := _trial_run(run, folder, trial.number))
    }
    for stray in (child.info.run_id for child in children):
        if stray in ended:
            close_trial(run, folder, ended[stray])
        else:
            close_run(RunRef(run.uri, run.experiment_id, stray), "KILLED")


def send_unsent(run: RunRef, folder: AnyPath) -> None:
    """Sends the remaining metrics of ended trials; warns of what is left after a while."""
    give_up_at = time.monotonic() + _SEND_PATIENCE_SECONDS
    for trial in read_trials(folder):
        home = trial_folder(folder, trial.number)
        child = _trial_run(run, folder, trial.number)
        if trial.status == "running" or child is None or not (home / UNSENT_FILE).exists():
            continue  # a running trial sends its own
        _send(child, home, trial, max(give_up_at - time.monotonic(), 0.0))
        if (home / UNSENT_FILE).exists():
            logger.warning(
                "MLflow did not take all metrics of %s; the same command sends what is left in %s",
                trial.name,
                home / UNSENT_FILE,
            )


def _send(child: RunRef, home: AnyPath, trial: Trial, patience_seconds: float) -> None:
    # A killed trial wrote no file, but its last checkpoint has a copy; duplicates do no harm.
    checkpoint = newest_checkpoint(home) if trial.status != "completed" else None
    unsent = read_unsent(checkpoint) if checkpoint is not None else []
    if unsent or (home / UNSENT_FILE).exists():
        Tracker(child, home / UNSENT_FILE, unsent=unsent).close(patience_seconds)

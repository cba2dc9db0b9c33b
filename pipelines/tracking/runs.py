"""MLflow runs: one per job, with its settings, its parent, and the datasets that it read.

A job opens its run in the driver (`open_run`) and passes a `RunRef` on to whoever logs to it.
"""

import json
import logging
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.config.base import JobConfig
from pipelines.config.dotted import flat
from pipelines.errors import Stopped, UserError
from pipelines.redaction import one_line, redacted
from pipelines.tracking.server import SQLITE, patiently, tracking_uri

# isort: split
from mlflow.entities import Dataset, DatasetInput, InputTag, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

OPEN_PATIENCE_SECONDS = 30.0
"""How long a job that begins waits for MLflow, which answered a moment ago (`check_tracking`)."""
WORK_PATIENCE_SECONDS = 300.0
"""How long work that is under way waits, as a trial of a sweep that begins."""
WARNING_TAG = "xkd.warning."
"""Start of the tags under which a run keeps what its user must know."""


@dataclass(frozen=True)
class RunRef:
    """A run of MLflow: all that a worker needs to log to it."""

    uri: str
    experiment_id: str
    run_id: str

    def client(self) -> MlflowClient:
        """A client for the run's server."""
        return MlflowClient(self.uri)


def kept_settings(config: JobConfig) -> dict[str, Any]:
    """All settings as JSON for files that others may read: without the server's password."""
    values = config.model_dump(mode="json")
    if values["tracking"]["uri"]:
        values["tracking"]["uri"] = redacted(values["tracking"]["uri"])
    return values


def open_run(
    config: JobConfig, job: str, name: str, *, parent: RunRef | None = None, run_id: str = ""
) -> RunRef:
    """Opens a run, or goes on in the run `run_id` if MLflow still has it.

    A part of another run goes where that one is: Ray's workers have working directories of their
    own, where a relative default would be another server.

    Raises:
        JobFailed: if MLflow refuses, or is away for longer than a while.
    """
    uri = parent.uri if parent is not None else tracking_uri(config.tracking)
    if uri.startswith(SQLITE):
        Path(uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(uri)
    patience = WORK_PATIENCE_SECONDS if parent is not None else OPEN_PATIENCE_SECONDS
    if run_id and (experiment_id := patiently(uri, patience, lambda: _reopened(client, run_id))):
        return RunRef(uri, experiment_id, run_id)
    experiment_id = (
        parent.experiment_id
        if parent is not None
        else patiently(uri, patience, lambda: _experiment(client, config.tracking.experiment, uri))
    )
    tags = {"xkd.job": job, "xkd.code_version": code_version()}
    if parent is not None:
        tags["mlflow.parentRunId"] = parent.run_id
    run = patiently(
        uri, patience, lambda: client.create_run(experiment_id, run_name=name, tags=tags)
    )
    reference = RunRef(uri, experiment_id, run.info.run_id)
    patiently(uri, patience, lambda: _log_settings(client, reference.run_id, config))
    return reference


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment ({name}) was deleted in MLflow: restore it or name another one"
        )
    if found is not None:
        return str(found.experiment_id)
    # Without a server the artifacts lie beside the sqlite file, wherever the job was started.
    beside = Path(uri.removeprefix(SQLITE)).parent / "mlartifacts" if uri.startswith(SQLITE) else ""
    try:
        return str(client.create_experiment(name, artifact_location=str(beside) or None))
    except MlflowException:
        created = client.get_experiment_by_name(name)  # by another job in the meantime
        if created is None:
            raise
        return str(created.experiment_id)


def _reopened(client: MlflowClient, run_id: str) -> str | None:
    """The experiment of a run that goes on, or None if MLflow has deleted it or never had it."""
    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    if info.lifecycle_stage != "active":
        return None
    client.update_run(run_id, status="RUNNING")
    return str(info.experiment_id)


def _log_settings(client: MlflowClient, run_id: str, config: JobConfig) -> None:
    values = kept_settings(config)
    client.log_dict(run_id, values, "config.json")
    parameters = [Param(key, str(value)[:500]) for key, value in flat(values).items()]
    client.log_batch(run_id, params=parameters)


def close_run(run: RunRef, status: str) -> None:
    """Ends a run as FINISHED, FAILED or KILLED; a server that is away only leaves a warning."""
    try:
        run.client().set_terminated(run.run_id, status)
    except MlflowException as error:
        logger.warning(
            "MLflow did not hear that run %s is %s: %s", run.run_id, status, one_line(error)
        )


@contextmanager
def tracked(run: RunRef) -> Iterator[RunRef]:
    """Ends the run as the block ends: FINISHED, KILLED if it was stopped, FAILED on an error."""
    try:
        yield run
    except (KeyboardInterrupt, Stopped):
        close_run(run, "KILLED")
        raise
    except BaseException:
        close_run(run, "FAILED")
        raise
    close_run(run, "FINISHED")


def code_version() -> str:
    """The commit of this checkout, else the version of the installed package."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"xkd {version('xkd')}"


def metric_histories(run: RunRef) -> dict[str, tuple[list[int], list[float]]]:
    """All metrics of a run as steps and values, system metrics left out.

    Of a step that was done again after a kill MLflow has both values; the later one counts.
    """
    client = run.client()
    histories = {}
    for name in client.get_run(run.run_id).data.metrics:
        if not name.startswith("system/"):
            history = client.get_metric_history(run.run_id, name)
            values = {m.step: m.value for m in sorted(history, key=lambda m: m.timestamp)}
            steps = sorted(values)
            histories[name] = (steps, [values[step] for step in steps])
    return histories


def warnings_of(run: RunRef) -> list[str]:
    """What a run's user must know, such as a collapse or a feed that is too slow."""
    tags = run.client().get_run(run.run_id).data.tags
    return [text for name, text in sorted(tags.items()) if name.startswith(WARNING_TAG)]


def log_dataset(run: RunRef, *, dataset_id: str, path: str, num_clips: int, context: str) -> None:
    """Records which clip dataset a run read.

    Raises:
        JobFailed: if MLflow refuses, or is away for longer than a while.
    """
    client = run.client()
    dataset = Dataset(
        name="clips",
        digest=dataset_id[:36],
        source_type="local",
        source=json.dumps({"uri": path}),
        profile=json.dumps({"num_clips": num_clips}),
    )
    tag = InputTag("mlflow.data.context", context)

    def log() -> None:
        client.set_tag(run.run_id, f"xkd.dataset.{context}", dataset_id)
        client.log_inputs(run.run_id, [DatasetInput(dataset, [tag])])

    patiently(run.uri, WORK_PATIENCE_SECONDS, log)

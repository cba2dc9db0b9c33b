"""MLflow runs: one per job, with its settings, its parent run, and the datasets that it read.

The driver opens a run with `open_run` and passes the `RunRef` to the workers that log to it.
"""

import hashlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from pipelines.config.base import JobConfig, settings_without_password
from pipelines.config.dotted import flat
from pipelines.errors import Stopped, UserError
from pipelines.redaction import one_line, redacted
from pipelines.storage import AnyPath
from pipelines.tracking.code_version import code_version
from pipelines.tracking.moved_artifacts import ARTIFACTS_FOLDER, mend_moved_artifacts
from pipelines.tracking.server import retry_while_away, tracking_uri
from pipelines.tracking.sqlite import artifact_location, sqlite_file
from pipelines.transfers import on_disk

# isort: split
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

_OPEN_PATIENCE_SECONDS = 30.0
"""How long a starting job waits for MLflow, which answered a moment ago (`check_tracking`)."""
_WORK_PATIENCE_SECONDS = 300.0
"""How long work already under way waits, such as a sweep that starts a trial."""
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets in a submitted job."""
_MAX_NAME = 250
_LOCAL_PAGES = "http://127.0.0.1:5000"
"""Where `mlflow ui` serves its pages."""
WARNING_TAG = "xkd.warning."
"""Prefix of the tags that hold warnings for the user of a run."""


@dataclass(frozen=True)
class RunRef:
    """What a worker needs to log to an MLflow run."""

    uri: str
    experiment_id: str
    run_id: str

    def log_file(self, path: AnyPath) -> None:
        """Logs a file as an artifact."""
        with on_disk(path) as file:
            self.client().log_artifact(self.run_id, str(file))

    def client(self) -> MlflowClient:
        """Returns a client for the run's server."""
        return MlflowClient(self.uri)

    def page(self) -> str:
        """Returns the address of the run's own page in the web interface of MLflow.

        A run in an SQLite file has a page while `server_command` runs.

        >>> RunRef("http://me:secret@host:5000/", "1", "a0").page()
        'http://***@host:5000/#/experiments/1/runs/a0'
        """
        server = _LOCAL_PAGES if sqlite_file(self.uri) else redacted(self.uri)
        return f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    def server_command(self) -> str:
        """Returns the command that serves the page of a run in an SQLite file; else nothing."""
        if sqlite_file(self.uri) is None:
            return ""
        program = Path(sys.executable).with_name("mlflow")
        return f"{shlex.quote(str(program))} ui --backend-store-uri {shlex.quote(self.uri)}"


def open_run(
    config: JobConfig, job: str, name: str, *, parent: RunRef | None = None, run_id: str = ""
) -> RunRef:
    """Opens a run, or continues the run `run_id` if MLflow still has it.

    A child run is stored on its parent's server. Ray's workers have their own working directories,
    where a relative default would name another server.

    Args:
        config: The settings, which the run records.
        job: The job's name, a tag of the run.
        name: The run's name.
        parent: The run that this one is part of.
        run_id: The run to continue, if any.

    Raises:
        JobFailed: if MLflow refuses or stays away.
    """
    uri = parent.uri if parent is not None else tracking_uri(config.tracking)
    if file := sqlite_file(uri):
        file.parent.mkdir(parents=True, exist_ok=True)
        mend_moved_artifacts(file)
    client = MlflowClient(uri)
    patience = _WORK_PATIENCE_SECONDS if parent is not None else _OPEN_PATIENCE_SECONDS
    if run_id:
        found = retry_while_away(uri, patience, lambda: _reopened(client, run_id))
        if found is not None:
            return RunRef(uri, found, run_id)
    if parent is not None:
        experiment_id = parent.experiment_id
    else:
        wanted = config.tracking.experiment
        experiment_id = retry_while_away(uri, patience, lambda: _experiment(client, wanted, uri))
    tags = {"xkd.job": job, "xkd.code_version": code_version(), **ray_tags()}
    if parent is not None:
        tags["mlflow.parentRunId"] = parent.run_id
    run = retry_while_away(
        uri, patience, lambda: client.create_run(experiment_id, run_name=name, tags=tags)
    )
    reference = RunRef(uri, experiment_id, run.info.run_id)
    retry_while_away(uri, patience, lambda: _log_settings(client, reference.run_id, config))
    return reference


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment ({name}) was deleted in MLflow: restore it or name another one"
        )
    if found is not None:
        return str(found.experiment_id)
    # Without a server, artifacts are kept beside the SQLite file, wherever the job was started.
    file = sqlite_file(uri)
    beside = artifact_location(file.parent / ARTIFACTS_FOLDER) if file else None
    try:
        return str(client.create_experiment(name, artifact_location=beside))
    except MlflowException:
        created = client.get_experiment_by_name(name)  # another job has created it meanwhile
        if created is None:
            raise
        return str(created.experiment_id)


def _reopened(client: MlflowClient, run_id: str) -> str | None:
    """Reopens a run and returns its experiment; None if MLflow deleted it or never had it."""
    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    if info.lifecycle_stage != "active":
        return None
    client.update_run(run_id, status="RUNNING")
    for name, value in ray_tags().items():
        client.set_tag(run_id, name, value)
    return str(info.experiment_id)


def ray_tags() -> dict[str, str]:
    """Returns tags that name the Ray job of this process, and its submission if it has one."""
    tags = {}
    if ray.is_initialized():
        tags["xkd.ray.job_id"] = ray.get_runtime_context().get_job_id()
    submitted: Any = json.loads(os.environ.get(_JOB_CONFIG, "{}"))
    if submission := (submitted.get("metadata") or {}).get("job_submission_id"):
        tags["xkd.ray.submission_id"] = submission
    return tags


def _log_settings(client: MlflowClient, run_id: str, config: JobConfig) -> None:
    values = settings_without_password(config)
    client.log_dict(run_id, values, "config.json")
    parameters = [Param(key, str(value)[:500]) for key, value in flat(values).items()]
    client.log_batch(run_id, params=parameters)


def close_run(run: RunRef, status: str) -> None:
    """Ends a run as FINISHED, FAILED or KILLED; logs a warning if the server is away."""
    try:
        run.client().set_terminated(run.run_id, status)
    except MlflowException as error:
        logger.warning(
            "MLflow run %s could not be set to %s: %s", run.run_id, status, one_line(error)
        )


@contextmanager
def tracked(run: RunRef) -> Iterator[RunRef]:
    """Ends the run with the block: FINISHED, KILLED if it was stopped, FAILED on an error."""
    try:
        yield run
    except (KeyboardInterrupt, Stopped):
        close_run(run, "KILLED")
        raise
    except BaseException:
        close_run(run, "FAILED")
        raise
    close_run(run, "FINISHED")


def metric_histories(run: RunRef) -> dict[str, tuple[list[int], list[float]]]:
    """Returns the metrics of a run as steps and values, without system metrics.

    MLflow has two values of a step that was repeated after a kill; the later one is returned.
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
    """Returns the warnings of a run, such as a collapse or a feed that is too slow."""
    tags = run.client().get_run(run.run_id).data.tags
    return [text for name, text in sorted(tags.items()) if name.startswith(WARNING_TAG)]


def log_dataset(run: RunRef, *, dataset_id: str, path: str, num_clips: int, context: str) -> None:
    """Records which clip dataset a run read.

    Raises:
        JobFailed: if MLflow refuses or stays away.
    """
    client = run.client()
    dataset = Dataset(
        # MLflow keeps one source for each name and digest; equal clips elsewhere have another.
        name=_dataset_name(redacted(path)),
        digest=dataset_id[:36],
        source_type="local",
        source=json.dumps({"uri": path}),
        profile=json.dumps({"num_clips": num_clips}),
    )
    tag = InputTag("mlflow.data.context", context)

    def log() -> None:
        client.set_tag(run.run_id, f"xkd.dataset.{context}", dataset_id)
        client.log_inputs(run.run_id, [DatasetInput(dataset, [tag])])

    retry_while_away(run.uri, _WORK_PATIENCE_SECONDS, log)


def _dataset_name(path: str) -> str:
    """Returns a path as a name; a hash replaces the beginning of one that is too long."""
    if len(path) <= _MAX_NAME:
        return path
    start = f"{hashlib.sha256(path.encode()).hexdigest()[:16]}..."
    return start + path[len(start) - _MAX_NAME :]


def log_origins(run: RunRef, origins: Mapping[str, Mapping[str, str]]) -> None:
    """Records which weights a training began from, and links the logged models among them.

    Args:
        run: The run of the training.
        origins: `InitialWeights.origins`: for each modality a source, a content hash, and the
            `model_id` of a registered version.

    Raises:
        JobFailed: if MLflow refuses or stays away.
    """
    client = run.client()
    models = [LoggedModelInput(one["model_id"]) for one in origins.values() if "model_id" in one]

    def log() -> None:
        for modality, origin in origins.items():
            client.set_tag(run.run_id, f"xkd.init.{modality}", origin["source"])
            client.set_tag(run.run_id, f"xkd.init.{modality}.content", origin["content"])
        if models:
            client.log_inputs(run.run_id, models=models)

    retry_while_away(run.uri, _WORK_PATIENCE_SECONDS, log)

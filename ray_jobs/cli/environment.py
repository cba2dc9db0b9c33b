"""Environment variables that every job sets for itself and its workers.

Importing `ray_jobs` sets them, because MLflow reads some of them on import. Values that the user
has set stay. Workers of a job's own Ray inherit them; workers of a cluster get them through the
runtime environment (`ray_jobs.cli.cluster`).
"""

import json
import os
from typing import Any

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Threads of Ray Data may outlive the job's Ray, and would start another one.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Under `uv run`, each worker would install everything into an environment of its own.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # A report of a worker waits until the controller polls, by default every 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Spot machines leave 30 s after their notice, some after 20 s; Ray looks every 5 s.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    # Bars of Ray Data would mix with the job's own.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # The job handles Ctrl-C itself.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Tune would print a table of its own; the job shows the trials.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Scores are in MLflow and in the folders of the trials.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A busy machine takes longer than 15 s to start the HTTP server of `xkd serve`.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Requests to a server that is away fail in seconds and are repeated later.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    # MLflow would log the uv.lock of the working directory.
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

WORKER_SETUP = {"worker_process_setup_hook": "ray_jobs.cli.environment.set_address"}
"""Runtime environment of the workers of any Ray."""
OWN_SETUP: dict[str, Any] = WORKER_SETUP | {
    "env_vars": {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
}
"""The same of a job's own Ray, whose only node never leaves: each training has a process less."""

STORES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Where buckets are, if the driver says so."""


def set_environment() -> None:
    """Sets the variables that the user has not set."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def submitted_environment(job_config: str | None) -> dict[str, Any]:
    """Returns the runtime environment of a submitted job.

    Args:
        job_config: Ray's configuration of the job, as JSON; None if the job was not submitted.
    """
    submitted: Any = json.loads(job_config) if job_config else {}
    return submitted.get("runtime_env") or {}


def set_address() -> None:
    """Sets `RAY_ADDRESS` in a worker to the cluster that the worker belongs to.

    Ray's state API otherwise asks the cluster that started last on the machine. Ray Train asks it
    whether a training's controller is alive: a second Ray on the machine would end the training.
    """
    import ray  # reads the variables above on import

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def worker_environment(job_config: str | None) -> dict[str, str]:
    """Returns the variables for the workers of a cluster: no credentials, which Ray would show.

    Args:
        job_config: Ray's configuration of a submitted job, as JSON. Variables of its runtime
            environment are left out, because Ray refuses those that both set.
    """
    theirs = submitted_environment(job_config).get("env_vars") or {}
    names = (*ENVIRONMENT, *(name for name in STORES if name in os.environ))
    return {name: os.environ[name] for name in names if name not in theirs}

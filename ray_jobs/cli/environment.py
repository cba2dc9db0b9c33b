"""The environment variables that every program of this package sets, for itself and its workers.

They are set when `ray_jobs` is imported: MLflow reads some of them once, as it is imported. A value
that the user has set stays. Workers of a Ray of this process's own inherit them; those of a cluster
get them through the runtime environment, see `ray_jobs.cli.cluster`.
"""

import json
import os
from typing import Any

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Every report of a worker waits for the controller to look, by default every 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Bars of Ray Data would appear among the job's own.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # The job handles Ctrl-C, as in all jobs.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Scores go to MLflow and to the folders of the trials.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A server that is away fails in seconds; what could not be sent waits and is sent again.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    # MLflow would copy the uv.lock of whatever project a job is started in.
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


_STORES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Where buckets are, if the driver says so."""


def set_environment() -> None:
    """Sets what the user has not set."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def worker_environment(job_config: str | None) -> dict[str, str]:
    """The variables to hand to the workers of a cluster: no credentials, which Ray would show.

    Args:
        job_config: What Ray gives to a submitted job, as JSON. Its own runtime environment goes
            first; Ray refuses a variable that both set.
    """
    submitted: Any = json.loads(job_config) if job_config else {}
    theirs = (submitted.get("runtime_env") or {}).get("env_vars") or {}
    names = (*ENVIRONMENT, *(name for name in _STORES if name in os.environ))
    return {name: os.environ[name] for name in names if name not in theirs}

"""Runs of MLflow for tests."""

from pathlib import Path
from typing import Any

from mlflow.tracking._tracking_service import utils

from pipelines.config.ingest import IngestConfig
from pipelines.tracking.runs import RunRef, open_run


def config_at(home: Path) -> IngestConfig:
    """Settings of a job that logs to an sqlite file in `home`."""
    return IngestConfig.model_validate(
        {"output": str(home / "clips"), "tracking": {"uri": f"sqlite:///{home}/mlflow.db"}}
    )


def run_at(home: Path, **how: Any) -> RunRef:
    """Opens a run in an sqlite file in `home`."""
    return open_run(config_at(home), "ingest", "test", **how)


def forget_artifacts() -> None:
    """Makes MLflow look up where artifacts are, as a new process does."""
    utils._artifact_repos_cache.clear()

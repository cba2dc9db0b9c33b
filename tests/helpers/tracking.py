"""Runs of MLflow for tests."""

from pathlib import Path
from typing import Any

from pipelines.config.ingest import IngestConfig
from pipelines.tracking.runs import RunRef, open_run


def run_at(home: Path, **how: Any) -> RunRef:
    """Opens a run in an sqlite file in `home`."""
    config = IngestConfig.model_validate(
        {"output": str(home / "clips"), "tracking": {"uri": f"sqlite:///{home}/mlflow.db"}}
    )
    return open_run(config, "ingest", "test", **how)

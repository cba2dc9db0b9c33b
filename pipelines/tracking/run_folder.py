"""The folder of a run: what it began with, and a lock so that one process at a time works in it.

    runs/NAME/run.json   MLflow run id, and what must stay the same when the run continues
    runs/NAME/config.yaml   the resolved settings, which the same job takes as its file
    runs/NAME/.lock      held while a process works in the folder

A training, a sweep and the main job each have such a folder; the name of a run is its identity.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.base import JobConfig
from pipelines.config.written import CONFIG_FILE, write_settings
from pipelines.errors import UserError
from pipelines.files import locked, write_json
from pipelines.paths import moved_paths
from pipelines.redaction import one_line
from pipelines.storage import AnyPath
from pipelines.tracking.runs import RunRef, open_run

RUN_FILE = "run.json"
LOCK_FILE = ".lock"


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, which may not exist yet."""

    path: AnyPath

    @contextmanager
    def locked(self, kind: str = "run", *, patience_seconds: float = 0.0) -> Iterator[None]:
        """Creates the folder and holds its lock.

        Args:
            kind: What the run is called if another process holds the lock.
            patience_seconds: How long to wait for that process.

        Raises:
            UserError: if another process still holds it after that time.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        what = f"{kind} ({self.path})"
        with locked(self.path / LOCK_FILE, what, patience_seconds=patience_seconds):
            yield

    @property
    def began_with(self) -> dict[str, Any]:
        """The content of `run.json`, with paths as they are now; empty if the run has not begun.

        Raises:
            UserError: If it is damaged.
        """
        file = self.path / RUN_FILE
        values = _object_in(file) if file.exists() else {}
        config = values.get("config", {})
        if "output" in config and "name" in config and isinstance(self.path, Path):
            values["config"] = moved_paths(
                config, Path(config["output"], config["name"]), self.path
            )
        return values

    @property
    def run_id(self) -> str:
        """The id of its MLflow run; empty if the run has not begun."""
        return str(self.began_with.get("run_id", ""))

    def open_run(
        self,
        config: JobConfig,
        job: str,
        name: str,
        *,
        parent: RunRef | None = None,
        run_id: str = "",
        keep: Mapping[str, Any] | None = None,
    ) -> RunRef:
        """Opens the MLflow run, or continues the one that `run.json` names, and writes both files.

        Args:
            config: The settings, which say where MLflow is.
            job: The job's name, a tag of the run.
            name: The run's name in MLflow.
            parent: The run that this one is part of.
            run_id: A run to continue if the folder does not name one.
            keep: What `run.json` records beside the run id.

        Raises:
            JobFailed: if MLflow refuses or stays away.
        """
        run = open_run(config, job, name, parent=parent, run_id=self.run_id or run_id)
        write_json(self.path / RUN_FILE, {"run_id": run.run_id, **(keep or {})})
        write_settings(self.path / CONFIG_FILE, config)
        return run


def _object_in(file: AnyPath) -> dict[str, Any]:
    text = file.read_text()
    try:
        values = json.loads(text)
    except ValueError as error:
        values = one_line(error)
    if isinstance(values, dict) and isinstance(values.get("config", {}), dict):
        return values
    raise UserError(
        f"({file}) is damaged: it must hold an object, and has {str(values)[:100]}. Restore it, or "
        "delete it to continue with a new run in MLflow"
    )

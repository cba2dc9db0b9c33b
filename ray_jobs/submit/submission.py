"""What a submission consists of: the job, its settings, and what its processes find around them."""

import os
import re
import secrets
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.base import JobConfig
from pipelines.errors import UserError
from pipelines.paths import PACKAGES
from pipelines.storage import AnyPath
from pipelines.tracking.code_version import CODE_VERSION, code_version
from ray_jobs.cli.configurations import find_configuration
from ray_jobs.cli.environment import STORES
from ray_jobs.cli.jobs import JOBS
from ray_jobs.cli.settings import load_settings
from ray_jobs.submit.places import HOME_OF_CLUSTER

ENVIRONMENTS = ("image", "pip", "uv")
_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""How long Ray waits from the SIGTERM of a stopped job to its end. Ray's 3 s are less than a
checkpoint takes to save."""
_STOP_SECONDS = 600
_PASSED_ON = (*STORES, "MLFLOW_TRACKING_URI")
"""Addresses that the job needs and that hold no credentials."""


@dataclass(frozen=True)
class Submission:
    """A job to run on a cluster."""

    id: str
    job: str
    argument: str
    """The first argument of the job: a short name, or media."""
    file: AnyPath | None
    """The configuration if the argument names a file of this machine, which is uploaded."""
    overrides: tuple[str, ...]
    config: JobConfig
    """The settings as the cluster reads them."""
    home: str | None
    environment: str
    code_version: str

    def command(self, uploaded: str | None) -> list[str]:
        """Returns the command on the cluster.

        Args:
            uploaded: Path of the uploaded configuration, if there is one.
        """
        module = f"ray_jobs.{JOBS[self.job].module}"
        return ["python", "-m", module, uploaded or self.argument, *self.overrides]

    def variables(self) -> dict[str, str]:
        """Returns environment variables of the job. None is a secret, for Ray shows them."""
        values = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        if self.home:
            values["XKD_HOME"] = self.home
        values[_STOP_WAIT] = os.environ.get(_STOP_WAIT, str(_STOP_SECONDS))
        return {**values, CODE_VERSION: self.code_version}

    def runtime_env(self, folder: str) -> dict[str, Any]:
        """Returns what the job's processes run in."""
        values: dict[str, Any] = {"working_dir": folder, "env_vars": self.variables()}
        if self.environment != "image":
            values[self.environment] = pinned_packages()
        return values


def submission_of(
    job: str, arguments: Sequence[str], *, home: str | None, environment: str
) -> Submission:
    """Reads the settings as the cluster will.

    Raises:
        UserError: If the job, the configuration or a setting is wrong.
    """
    if job not in JOBS:
        raise UserError(f"no job {job!r}; jobs: {', '.join(JOBS)}")
    if not arguments:
        raise UserError(f"xkd submit {job} needs a configuration, as xkd {job} does")
    if "@" in os.environ.get("MLFLOW_TRACKING_URI", ""):
        raise UserError(
            "MLFLOW_TRACKING_URI must hold no password, for Ray shows the variables of a job: set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the nodes"
        )
    argument, *overrides = arguments
    summary = JOBS[job]
    home = home or os.environ.get("XKD_HOME")
    before = os.environ.get("XKD_HOME")
    os.environ["XKD_HOME"] = home or HOME_OF_CLUSTER
    try:
        is_file = argument.endswith((".yaml", ".yml"))
        chosen = find_configuration(summary, argument, overrides, _media_of_cluster(job))
        config = load_settings(summary.schema(), chosen.file, chosen.overrides)
    finally:
        del os.environ["XKD_HOME"]
        if before is not None:
            os.environ["XKD_HOME"] = before
    return Submission(
        id=_new_id(job, getattr(config, "name", None)),
        job=job,
        argument=argument,
        file=chosen.file if is_file else None,
        overrides=tuple(overrides),
        config=config,
        home=home,
        environment=environment,
        code_version=code_version(),
    )


def _media_of_cluster(job: str) -> Any:
    """Returns what chooses a configuration for media; the job decides again on the cluster."""
    if job != "run":
        return None
    from ray_jobs.cli.own_media import arguments_for_media

    return arguments_for_media


def _new_id(job: str, name: str | None) -> str:
    parts = ["xkd", job, *([name] if name else []), time.strftime("%Y%m%d-%H%M%S")]
    return f"{'-'.join(parts)}-{secrets.token_hex(2)}"


def pinned_packages() -> list[str]:
    """Returns the packages of a checkout at the versions that `constraints.txt` pins.

    Raises:
        UserError: If this is no checkout.
    """
    project, pins = PACKAGES / "pyproject.toml", PACKAGES / "constraints.txt"
    if not project.exists() or not pins.exists():
        raise UserError(
            "--environment pip and uv need a checkout, whose constraints.txt pins the packages"
        )
    wanted = tomllib.loads(project.read_text())["project"]["dependencies"]
    return [_pinned(package, pins) for package in wanted]


def _pinned(package: str, pins: Path) -> str:
    found = re.match(r"([A-Za-z0-9_.-]+)(\[[^]]*\])?", package)
    assert found is not None
    name, extras = found[1], found[2] or ""
    pin = re.search(rf"^{re.escape(name)}==([^\s;]+)", pins.read_text(), re.M | re.I)
    return f"{name}{extras}=={pin[1]}" if pin else package

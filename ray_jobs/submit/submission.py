"""What a submission consists of: the job, its settings, and what its processes find around them."""

import os
import re
import secrets
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.base import JobConfig
from pipelines.errors import UserError
from pipelines.paths import PACKAGES, absolute_location, is_uri
from pipelines.storage import AnyPath
from pipelines.tracking.code_version import CODE_VERSION, code_version
from ray_jobs.cli.configurations import (
    Arguments,
    configuration_folder,
    configuration_names,
    find_configuration,
)
from ray_jobs.cli.environment import STORES
from ray_jobs.cli.jobs import JOBS, JobSummary
from ray_jobs.cli.own_media import run_name
from ray_jobs.cli.settings import load_settings
from ray_jobs.submit.places import HOME_OF_CLUSTER

ENVIRONMENTS = ("image", "pip", "uv")
_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""How long Ray waits from the SIGTERM of a stopped job to its end. Ray's 3 s are less than a
checkpoint takes to save."""
_STOP_SECONDS = 600
_SETUP_SECONDS = 1800
"""How long a node may take for packages. Ray's 600 s are short where it first copies a virtual
environment of 7 GB."""
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
            values["config"] = {"setup_timeout_seconds": _SETUP_SECONDS}
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
    if environment != "image":
        pinned_packages()  # before the cluster is asked anything
    argument, *overrides = arguments
    summary = JOBS[job]
    home = _home_of_cluster(home or os.environ.get("XKD_HOME"))
    with _variable("XKD_HOME", home or HOME_OF_CLUSTER):
        is_file = argument.endswith((".yaml", ".yml"))
        argument, overrides = _seen_by_cluster(summary, argument, overrides)
        chosen = _configuration(summary, argument, overrides)
        config = load_settings(summary.schema(), chosen.file, chosen.overrides)
    _check_suite(config)
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


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable while the block runs."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _home_of_cluster(home: str | None) -> str | None:
    """Returns `XKD_HOME` of the job, which runs in another folder and maybe as another user.

    Raises:
        UserError: If it is relative or no folder.
    """
    if not home:
        return None
    if not is_uri(home) and not os.path.isabs(home) and not home.startswith("~"):
        raise UserError(
            f"--home ({home}) must be a path from / or a URI: the job runs in a temporary folder "
            "of the cluster"
        )
    try:
        return absolute_location(home)
    except ValueError as error:
        raise UserError(f"--home {error}") from error


def _seen_by_cluster(
    summary: JobSummary, argument: str, overrides: Sequence[str]
) -> tuple[str, list[str]]:
    """Makes paths on the command line absolute: those that start where the user is."""
    words = [argument, *overrides]
    if summary.media is None or argument in configuration_names(summary.name):
        return argument, list(overrides)
    expanded = os.path.expanduser(argument)
    is_file = argument.endswith((".yaml", ".yml"))
    if summary.is_path and not is_uri(argument) and not is_file and os.path.exists(expanded):
        words[0] = os.path.abspath(expanded)
    is_target = summary.target is not None and bool(overrides) and "=" not in overrides[0]
    if is_target and not is_uri(overrides[0]):
        words[1] = os.path.abspath(os.path.expanduser(overrides[0]))
    return words[0], words[1:]


def _configuration(summary: JobSummary, argument: str, overrides: Sequence[str]) -> Arguments:
    """Finds the configuration without a look at media, which the cluster may see alone."""
    is_known = argument.endswith((".yaml", ".yml")) or argument in configuration_names(summary.name)
    if is_known or summary.media is None or not (is_uri(argument) or os.path.isabs(argument)):
        return find_configuration(summary, argument, overrides)
    if summary.name == "run":
        # The cluster chooses between this one and that for a GPU.
        file = configuration_folder() / summary.name / "laptop.yaml"
        named = [f"name={run_name(argument)}", f"{summary.media}={argument}", *overrides]
        return Arguments(file, named)
    named = [f"{summary.media}={argument}", *overrides]
    if summary.target is not None and overrides and "=" not in overrides[0]:
        named[1] = f"{summary.target}={overrides[0]}"
    return Arguments(None, named)


def _check_suite(config: JobConfig) -> None:
    """Refuses evaluations in files of this machine: only the suite itself is uploaded."""
    for entry in getattr(config, "suite", ()):
        if entry.config.endswith((".yaml", ".yml")) and not is_uri(entry.config):
            raise UserError(
                f"suite: config ({entry.config}) must be a short name, such as esc50, whose other "
                "values `settings` replaces: files that a suite names are not uploaded"
            )


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

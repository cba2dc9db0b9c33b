"""The configurations of the package, and their short names such as `smoke` and `one_gpu`."""

from __future__ import annotations

import difflib
import importlib.resources
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.errors import UserError
from pipelines.paths import PACKAGES, is_uri
from pipelines.storage import AnyPath, path_of
from ray_jobs.cli.jobs import JobSummary

_SUFFIXES = (".yaml", ".yml")


class Arguments(NamedTuple):
    """The result of parsing a command line."""

    file: AnyPath | None
    overrides: Sequence[str]
    note: str | None = None
    """First line for the user, if the file does not follow from the argument alone."""


def configuration_folder() -> Path:
    """Returns the folder `conf`: beside the code in a checkout, inside an installed package."""
    installed = Path(str(importlib.resources.files("ray_jobs"))) / "conf"
    return installed if installed.is_dir() else PACKAGES / "conf"


def configuration_names(job: str) -> list[str]:
    """Returns the short names of a job's configurations."""
    return sorted(file.stem for file in (configuration_folder() / job).glob("*.yaml"))


def find_configuration(
    job: JobSummary,
    argument: str,
    overrides: Sequence[str],
    for_media: Callable[[JobSummary, str, Sequence[str]], Arguments] | None = None,
) -> Arguments:
    """Finds the file that the first argument names, and the settings that follow from it.

    A short name takes precedence over a folder of that name, for which users write `./NAME`.

    Args:
        job: The job.
        argument: A YAML file, a short name, or media.
        overrides: The `key=value` that follow.
        for_media: Chooses the configuration for media, if they need one.

    Raises:
        UserError: If it is none of these.
    """
    if argument.endswith(_SUFFIXES) and not os.path.isdir(argument):
        if not os.path.exists(argument) and Path(argument).stem in configuration_names(job.name):
            raise UserError(
                f"configuration file ({argument}) does not exist; for the one that comes with XKD "
                f"give its short name: xkd {job.name} {Path(argument).stem}"
            )
        return Arguments(path_of(argument), overrides)
    if argument in configuration_names(job.name):
        file = configuration_folder() / job.name / f"{argument}.yaml"
        is_media_too = job.media and os.path.exists(argument)
        note = f"{shown_file(file)}; ./{argument} means the path of that name"
        return Arguments(file, overrides, note if is_media_too else None)
    if job.media is None:
        raise UserError(_no_configuration(job, argument))
    media = _existing(job, argument) if job.is_path else argument
    if job.target is not None:
        return Arguments(None, _with_target(job, media, overrides))
    if for_media is None:
        return Arguments(None, [f"{job.media}={media}", *overrides])
    return for_media(job, media, overrides)


def _existing(job: JobSummary, argument: str) -> str:
    """The URI, or the absolute path of media that exist."""
    if is_uri(argument):
        return argument
    if not os.path.exists(os.path.expanduser(argument)):
        raise UserError(_no_configuration(job, argument))
    # A path on the command line starts where the user is, not at XKD_HOME.
    return os.path.abspath(os.path.expanduser(argument))


def _with_target(job: JobSummary, argument: str, overrides: Sequence[str]) -> list[str]:
    """The settings that `xkd JOB ARGUMENT TARGET [key=value ...]` means."""
    settings = [f"{job.media}={argument}"]
    if overrides and "=" not in overrides[0]:
        target = overrides[0]
        if not is_uri(target):
            # A path on the command line starts where the user is, not at XKD_HOME.
            target = os.path.abspath(os.path.expanduser(target))
        settings.append(f"{job.target}={target}")
        overrides = overrides[1:]
    return [*settings, *overrides]


def misplaced(overrides: Sequence[str]) -> list[str]:
    """Returns hints for relative paths that exist here, but not in XKD_HOME, where they start."""
    found = []
    for override in overrides:
        key, _, value = override.partition("=")
        folder = os.environ.get("XKD_HOME")
        if not folder or not value or not os.path.exists(value) or os.path.isabs(value):
            continue
        if is_uri(folder) or not (Path(folder).expanduser() / value).exists():
            found.append(
                f"{key} ({value}) is relative to XKD_HOME ({folder}); for the one here give "
                f"{key}={os.path.abspath(value)}"
            )
    return found


def shown_file(file: AnyPath) -> str:
    """Returns a path for display, relative if it lies below the working directory."""
    here = Path.cwd()
    if isinstance(file, Path) and file.is_relative_to(here):
        return str(file.relative_to(here))
    return str(file)


def _no_configuration(job: JobSummary, argument: str) -> str:
    names = configuration_names(job.name)
    what = "a YAML file or a short name" + (f", or the {job.media} itself" if job.media else "")
    text = f"argument ({argument}) must be {what}, but no such path exists"
    if os.path.exists(argument):
        path = os.path.abspath(argument)
        text = f"argument ({argument}) must be {what}; for media, add input={path} after it"
    nearest = difflib.get_close_matches(argument, names, n=1)
    if nearest:
        return f"{text}; did you mean {nearest[0]}?"
    return f"{text}; short names: {', '.join(names)}" if names else text

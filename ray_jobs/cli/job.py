"""Runs a job from its command line: `CONFIG [key=value ...] [--dry-run]`.

CONFIG is a YAML file or the short name of one that comes with XKD. Some jobs take media instead. A
job's module defines `JOB`; this module reads the settings, makes the plan and runs the job. A job
that fails prints one line on stderr and exits with 2 for a user's mistake, 1 for a known failure,
130 for Ctrl-C, or 75 (EX_TEMPFAIL of sysexits.h) for a stop after which the same command continues,
such as SIGTERM or a time budget.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import yaml

from pipelines.config.base import JobConfig
from pipelines.errors import JobFailed, Stopped, Terminated, UserError
from pipelines.redaction import redacted
from ray_jobs.cli.configurations import Arguments, find_configuration, misplaced
from ray_jobs.cli.console import close_progress
from ray_jobs.cli.help import make_parser, missing_configuration
from ray_jobs.cli.jobs import JobSummary
from ray_jobs.cli.settings import load_settings

logger = logging.getLogger(__name__)

_FAILED = 1
_USER_ERROR = 2
_RESUMABLE = os.EX_TEMPFAIL
_INTERRUPTED = 130


@dataclass(frozen=True)
class JobPlan:
    """What a job reads and writes, and the mistakes that prevent it."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    mistakes: tuple[str, ...] = ()
    notes: Callable[[], Sequence[str]] = tuple
    """Returns further lines for `--dry-run`."""


@dataclass(frozen=True)
class Job:
    """A job: its settings, its plan and its work."""

    summary: JobSummary
    schema: type[JobConfig]
    plan: Callable[[Any], JobPlan]
    work: Callable[[Any], None]
    how_to_go_on: str = "The same command continues from there."
    uses_ray: bool = True
    """Whether it runs on a cluster; otherwise in this process alone."""
    for_media: Callable[[JobSummary, str, Sequence[str]], Arguments] | None = None
    """Chooses the configuration for media as first argument; None if no file is needed."""

    @property
    def name(self) -> str:
        """Name on the command line."""
        return self.summary.name


def run_job(job: Job, argv: Sequence[str] | None = None) -> int:
    """Runs one job; returns the exit code."""
    arguments = make_parser(job.summary, job.schema).parse_intermixed_args(argv)
    console = _StandardError()
    console.setFormatter(_Redacting("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING, handlers=[console]
    )
    if not arguments.verbose:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
    # Schedulers send SIGTERM before they kill; it is handled like Ctrl-C.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _plan_and_work(job, arguments)
    except UserError as error:
        print(f"{job.name}: {error}", file=sys.stderr)
        return _USER_ERROR
    except JobFailed as failure:
        print(f"{job.name}: {failure}", file=sys.stderr)
        return _RESUMABLE if isinstance(failure, Stopped) else _FAILED
    except KeyboardInterrupt as interrupt:
        is_terminated = isinstance(interrupt, Terminated)
        kind = "terminated" if is_terminated else "interrupted"
        print(f"\n{job.name}: {kind}. {_sentence(interrupt)}{job.how_to_go_on}", file=sys.stderr)
        return _RESUMABLE if is_terminated else _INTERRUPTED
    except Exception as error:
        reason = _outside_reason(error)
        if reason is None:
            raise
        # A traceback seldom helps here; --verbose shows it.
        logger.info("where it failed", exc_info=error)
        print(f"{job.name}: {reason}. {job.how_to_go_on}", file=sys.stderr)
        return _FAILED
    return 0


class _StandardError(logging.StreamHandler[Any]):
    """Writes to the current `sys.stderr`, which rich replaces while it draws a bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        """The current standard error."""
        return sys.stderr


class _Redacting(logging.Formatter):
    """Removes passwords, also from tracebacks, in which clients show whole URIs."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record."""
        return redacted(super().format(record))


def _plan_and_work(job: Job, arguments: argparse.Namespace) -> None:
    config = _settings(job, arguments)
    plan = job.plan(config)
    if arguments.dry_run:
        print(_dry_run(config, plan, uses_ray=job.uses_ray))
    if plan.mistakes:
        mistakes = tuple(dict.fromkeys((*plan.mistakes, *misplaced(arguments.overrides))))
        raise UserError("\n  ".join(_counted(mistakes)))
    if not arguments.dry_run:
        try:
            job.work(config)
        finally:
            close_progress()


def _outside_reason(error: Exception) -> str | None:
    """Returns the error of the system, MLflow or Ray; None if the code is at fault."""
    # Imported late: these take seconds, and MLflow depends on pipelines.tracking.server.
    import pyarrow as pa
    from mlflow.exceptions import MlflowException
    from ray.exceptions import RayError, RayTaskError

    from pipelines.filesystems import store_failure

    if isinstance(error, RayTaskError):
        error = error.cause  # the exception that a worker raised
    # The plain class has what clients of stores call an unknown error.
    is_of_store = type(error) is pa.ArrowException
    if not is_of_store and not isinstance(error, (OSError, MlflowException, RayError)):
        return None
    file = getattr(error, "filename", None)
    return store_failure(error).rstrip(".") + (f" ({file})" if file else "")


def _settings(job: Job, arguments: argparse.Namespace) -> Any:
    """Returns the settings of a file, or for media."""
    if arguments.config is None:
        raise UserError(missing_configuration(job.summary))
    chosen = find_configuration(job.summary, arguments.config, arguments.overrides, job.for_media)
    if chosen.note:
        print(f"{job.name}: {chosen.note}", flush=True)
    return load_settings(job.schema, chosen.file, chosen.overrides)


def _sentence(interrupt: KeyboardInterrupt) -> str:
    return f"{interrupt}. " if str(interrupt) else ""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def _counted(mistakes: Sequence[str]) -> list[str]:
    return list(mistakes) if len(mistakes) == 1 else [f"{len(mistakes)} mistakes", *mistakes]


def _dry_run(config: JobConfig, plan: JobPlan, *, uses_ray: bool) -> str:
    from pipelines.config.base import settings_without_password
    from pipelines.tracking.server import tracking_uri
    from ray_jobs.cli.cluster import ray_address

    settings = yaml.safe_dump(settings_without_password(config), sort_keys=False, width=100)
    lines = [settings, *(f"would read   {location}" for location in plan.reads)]
    lines += [f"would write  {location}" for location in plan.writes]
    lines += plan.notes()
    with suppress(ValueError):  # a mistake of the plan
        lines.append(f"would log to {redacted(tracking_uri(config.tracking))}")
    if uses_ray:
        lines.append(f"would run on {ray_address(config.ray) or 'a Ray of its own'}")
    return "\n".join(lines)

"""The one command-line form of every job: `CONFIG.yaml [key=value ...] [--dry-run]`.

A job that needs one place and little else takes that place instead of a `CONFIG.yaml`.
A job's module defines `JOB`; this file reads the settings, checks the surroundings, connects to
Ray and runs it. A user's mistake is one line on stderr and exit code 2, a known failure one line
and 1, Ctrl-C 130. What ends in order before its time and can go on (SIGTERM, a time budget) is one
line and 75, EX_TEMPFAIL of sysexits.h: run the same command again.
"""

import argparse
import importlib
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from pipelines.config.base import JobConfig
from pipelines.errors import JobFailed, Stopped, Terminated, UserError
from pipelines.redaction import one_line, redacted
from ray_jobs.cli.settings import described, load_settings

JOBS = (
    "run",
    "ingest",
    "dataset",
    "pretrain",
    "sweep",
    "evaluate",
    "promote",
    "embed",
    "import-checkpoint",
)

logger = logging.getLogger(__name__)

FAILED = 1
USER_ERROR = 2
RESUMABLE = os.EX_TEMPFAIL
INTERRUPTED = 130


@dataclass(frozen=True)
class Plan:
    """What a job would read and write, and what stands in its way."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    mistakes: tuple[str, ...] = ()
    notes: Callable[[], Sequence[str]] = tuple
    """Gives further lines for `--dry-run`."""


@dataclass(frozen=True)
class Job:
    """A program: its settings, its plan and its work."""

    name: str
    about: str
    schema: type[JobConfig]
    plan: Callable[[Any], Plan]
    work: Callable[[Any], None]
    how_to_go_on: str = "The same command goes on from there."
    place: str | None = None
    """The setting that the first argument is where it is no YAML file."""


def main(argv: Sequence[str] | None = None) -> int:
    """The installed command: `xkd JOB CONFIG.yaml [key=value ...]`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] not in JOBS:
        print(f"xkd: no job {arguments[0]!r}; jobs: {', '.join(JOBS)}", file=sys.stderr)
        return USER_ERROR
    return run_job(_job(arguments[0]), arguments[1:])


def _job(name: str) -> Job:
    job: Job = importlib.import_module(f"ray_jobs.{name.replace('-', '_')}").JOB
    return job


def _overview() -> str:
    lines = ["xkd JOB CONFIG.yaml [key=value ...] [--dry-run]", ""]
    lines += [f"  {name:17} {_job(name).about}" for name in JOBS]
    return "\n".join([*lines, "", "xkd JOB --help lists a job's settings."])


def run_job(job: Job, argv: Sequence[str] | None = None) -> int:
    """Runs one job; returns the exit code."""
    arguments = _parser(job).parse_args(argv)
    console = logging.StreamHandler()
    console.setFormatter(_Redacting("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING, handlers=[console]
    )
    if not arguments.verbose:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
    # What a scheduler sends before it kills is handled as Ctrl-C is.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _plan_and_work(job, arguments)
    except UserError as error:
        print(f"{job.name}: {error}", file=sys.stderr)
        return USER_ERROR
    except JobFailed as failure:
        print(f"{job.name}: {failure}", file=sys.stderr)
        return RESUMABLE if isinstance(failure, Stopped) else FAILED
    except KeyboardInterrupt as interrupt:
        is_terminated = isinstance(interrupt, Terminated)
        kind = "terminated" if is_terminated else "interrupted"
        print(f"\n{job.name}: {kind}. {_sentence(interrupt)}{job.how_to_go_on}", file=sys.stderr)
        return RESUMABLE if is_terminated else INTERRUPTED
    except Exception as error:
        reason = _outside_reason(error)
        if reason is None:
            raise
        # Hardly ever does the place in the code help; --verbose shows it.
        logger.info("where it failed", exc_info=error)
        print(f"{job.name}: {reason}. {job.how_to_go_on}", file=sys.stderr)
        return FAILED
    return 0


class _Redacting(logging.Formatter):
    """Leaves passwords out of tracebacks too, where clients show whole URIs."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines of a record."""
        return redacted(super().format(record))


def _plan_and_work(job: Job, arguments: argparse.Namespace) -> None:
    config = _settings(job, arguments)
    plan = job.plan(config)
    if arguments.dry_run:
        print(_dry_run(config, plan))
    if plan.mistakes:
        raise UserError("\n  ".join(_counted(plan.mistakes)))
    if not arguments.dry_run:
        job.work(config)


def _outside_reason(error: Exception) -> str | None:
    """What the system, MLflow or Ray failed with, or None if it was the code."""
    # Not before: these take seconds, and MLflow heeds what pipelines.tracking.tracker sets.
    from mlflow.exceptions import MlflowException
    from ray.exceptions import RayError, RayTaskError

    if isinstance(error, RayTaskError):
        error = error.cause  # what a worker's code raised
    if not isinstance(error, (OSError, MlflowException, RayError)):
        return None
    file = getattr(error, "filename", None)
    return one_line(error).rstrip(".") + (f" ({file})" if file else "")


def _settings(job: Job, arguments: argparse.Namespace) -> Any:
    """The settings of a file, or of the place that is given instead of one."""
    if job.place is None or arguments.config.endswith((".yaml", ".yml")):
        return load_settings(job.schema, Path(arguments.config), arguments.overrides)
    # As for a CONFIG.yaml, a path on the command line starts where the user is.
    here = Path(arguments.config)
    place = here.absolute() if here.exists() else arguments.config
    return load_settings(job.schema, None, [f"{job.place}={place}", *arguments.overrides])


def _sentence(interrupt: KeyboardInterrupt) -> str:
    return f"{interrupt}. " if str(interrupt) else ""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def _counted(mistakes: Sequence[str]) -> list[str]:
    return list(mistakes) if len(mistakes) == 1 else [f"{len(mistakes)} mistakes", *mistakes]


def _parser(job: Job) -> argparse.ArgumentParser:
    settings = [
        textwrap.fill(
            f"{name} ({default}) {meaning}".rstrip(),
            width=100,
            initial_indent="  ",
            subsequent_indent="      ",
        )
        for name, default, meaning in described(job.schema)
    ]
    parser = argparse.ArgumentParser(
        prog=f"python -m ray_jobs.{job.name.replace('-', '_')}",
        description=job.about,
        epilog="settings (default) and what they mean:\n" + "\n".join(settings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = f"{job.place.upper()} | CONFIG.yaml" if job.place else "CONFIG.yaml"
    parser.add_argument("config", metavar=what)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that go first")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the settings and places, do nothing"
    )
    parser.add_argument("--verbose", action="store_true", help="show the log as well")
    return parser


def _dry_run(config: JobConfig, plan: Plan) -> str:
    from pipelines.tracking.runs import kept_settings
    from pipelines.tracking.server import tracking_uri
    from ray_jobs.cli.cluster import ray_address

    settings = yaml.safe_dump(kept_settings(config), sort_keys=False, width=100)
    lines = [settings, *(f"would read   {place}" for place in plan.reads)]
    lines += [f"would write  {place}" for place in plan.writes]
    lines += plan.notes()
    lines.append(f"would log to {redacted(tracking_uri(config.tracking))}")
    lines.append(f"would run on {ray_address(config.ray) or 'a Ray of its own'}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

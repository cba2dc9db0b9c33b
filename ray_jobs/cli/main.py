"""The installed command: `xkd JOB CONFIG [key=value ...]`.

Help is answered from the table of jobs and a job's schema alone: importing a job takes seconds.
"""

import importlib
import sys
from collections.abc import Sequence

from ray_jobs.cli.jobs import JOBS

<<<<<<< HEAD
_HELP = ("-h", "--help")
_USER_ERROR = 2
=======
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
>>>>>>> main


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a job or prints help; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in _HELP:
        print(_overview())
        return 0
    name, *rest = arguments
    if name not in JOBS:
        print(f"xkd: no job {name!r}; jobs: {', '.join(JOBS)}", file=sys.stderr)
        return _USER_ERROR
    summary = JOBS[name]
    if any(argument in _HELP for argument in rest):
        from ray_jobs.cli.help import make_parser  # pydantic, which the overview does without

        make_parser(summary, summary.schema()).print_help()
        return 0
    from ray_jobs.cli.job import run_job

    return run_job(importlib.import_module(f"ray_jobs.{summary.module}").JOB, rest)


def _overview() -> str:
    lines = [
        "xkd run FOLDER               trains on your own media",
        "xkd JOB CONFIG [key=value ...] [--dry-run]",
        "",
        *(f"  {job.name:17} {job.about}" for job in JOBS.values()),
        "",
        "CONFIG is a YAML file, or the short name of one that comes with XKD: `xkd run smoke`.",
        "xkd JOB --help lists a job's configurations and settings.",
    ]
<<<<<<< HEAD
=======
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
>>>>>>> main
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

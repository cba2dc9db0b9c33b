"""The installed command: `xkd JOB CONFIG [key=value ...]`.

Help uses only the table of jobs and the schema of a job, because importing a job takes seconds.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

from ray_jobs.cli.jobs import JOBS

_HELP = ("-h", "--help", "help")
_USER_ERROR = 2
_INTERRUPTED = 130
_SUBMIT = "submit"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a job or prints help; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in _HELP:
        print(_overview())
        return 0
    name, *rest = arguments
    if name == "--version":
        from pipelines.tracking.code_version import code_version

        print(code_version())
        return 0
    if name == _SUBMIT:
        from ray_jobs.submit.command import main as submit

        return submit(rest)
    if name not in JOBS:
        names = [*JOBS, _SUBMIT]
        longer = [each for each in names if name and each.startswith(name)]
        nearest = longer or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        print(f"xkd: no job {name!r}; {hint}jobs: {', '.join(JOBS)}", file=sys.stderr)
        return _USER_ERROR
    summary = JOBS[name]
    if any(argument in _HELP[:2] for argument in rest):
        from ray_jobs.cli.help import (
            make_parser,
        )  # imports pydantic, which the overview does not need

        make_parser(summary, summary.schema()).print_help()
        return 0
    try:
        from ray_jobs.cli.job import run_job

        job = importlib.import_module(f"ray_jobs.{summary.module}").JOB
    except KeyboardInterrupt:  # importing takes seconds; later a job says it by itself
        print(f"\n{name}: interrupted before it began", file=sys.stderr)
        return _INTERRUPTED
    return run_job(job, rest)


def _overview() -> str:
    lines = [
        "xkd run FOLDER                  train on your own media",
        "xkd JOB CONFIG [key=value ...] [--dry-run]",
        "",
        *(f"  {job.name:17} {job.about}" for job in JOBS.values()),
        f"  {_SUBMIT:17} Runs a job on a cluster; follows, lists and stops jobs there.",
        "",
        "CONFIG is a YAML file, or the short name of one that comes with XKD: `xkd run smoke`.",
        "xkd JOB --help lists the configurations and settings of a job; xkd --version the version.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

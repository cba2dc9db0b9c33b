"""The command line of `xkd submit`."""

import argparse
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ray.job_submission import JobSubmissionClient

from pipelines.errors import UserError
from pipelines.quantities import byte_size
from ray_jobs.submit.checks import check_on_cluster
from ray_jobs.submit.follow import follow, listed
from ray_jobs.submit.package import Package, staged
from ray_jobs.submit.server import answering, connected_client, submit
from ray_jobs.submit.submission import ENVIRONMENTS, Submission, submission_of

_ABOUT = """Runs a job on a cluster.

  xkd submit JOB CONFIG [key=value ...]   checks, uploads the code, runs, and shows the log
  xkd submit list                         jobs of the cluster
  xkd submit logs ID                      follows the log of a job; Ctrl-C leaves the job running
  xkd submit stop ID                      sends SIGTERM to a job, which saves a checkpoint
"""
_SHOWN_FILES = 3
_ACTIONS = ("list", "logs", "stop")
_USER_ERROR = 2
_INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code of the job, or 2 for a mistake."""
    # Ray's client would say how its connections end.
    logging.getLogger("ray").setLevel(logging.WARNING)
    arguments = _parser().parse_intermixed_args(argv)
    try:
        return _run(arguments)
    except UserError as error:
        print(f"submit: {error}", file=sys.stderr)
        return _USER_ERROR
    except KeyboardInterrupt as interrupt:
        what = str(interrupt) or ", nothing was submitted"
        print(f"\nsubmit: interrupted{what}", file=sys.stderr)
        return _INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    action, rest = arguments.job, arguments.arguments
    if action not in _ACTIONS:
        return _submit(arguments)
    if action == "list" and rest:
        raise UserError(f"xkd submit list takes nothing after it, and there is {rest[0]!r}")
    if action != "list" and (len(rest) != 1 or not rest[0]):
        raise UserError(f"xkd submit {action} needs the ID of one job; xkd submit list shows them")
    client = connected_client(arguments.address)
    if action == "list":
        print(listed(client))
        return 0
    return follow(client, rest[0]) if action == "logs" else _stop(client, rest[0])


def _stop(client: JobSubmissionClient, job: str) -> int:
    with answering(client, job):
        if client.stop_job(job):
            print(
                f"{job} was asked to stop and saves a checkpoint first; xkd submit logs {job} "
                "shows how it ends"
            )
        else:
            print(f"{job} has ended before: {client.get_job_status(job).value}")
    return 0


def _submit(arguments: argparse.Namespace) -> int:
    submission = submission_of(
        arguments.job,
        arguments.arguments,
        home=arguments.home,
        environment=arguments.environment,
    )
    client = connected_client(arguments.address)
    with staged(submission) as package:
        print(_package_text(package), flush=True)
        check_on_cluster(client, submission)
        if arguments.dry_run:
            print(f"would run {shlex.join(submission.command(package.config))}")
            return 0
        with _interruptible(submission):
            submit(
                client,
                entrypoint=shlex.join(submission.command(package.config)),
                submission_id=submission.id,
                runtime_env=submission.runtime_env(str(package.folder)),
                metadata={"xkd.job": submission.job, "xkd.code_version": submission.code_version},
                entrypoint_num_cpus=arguments.driver_cpus,
            )
    print(f"submitted {submission.id}", flush=True)
    if arguments.detach:
        print(_how_to_attach(submission))
        return 0
    return follow(client, submission.id)


@contextmanager
def _interruptible(submission: Submission) -> Iterator[None]:
    """Says at Ctrl-C during the upload what nobody knows here."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f" during the upload; if the job server got all of it, {_how_to_attach(submission)}"
        ) from None


def _how_to_attach(submission: Submission) -> str:
    return f"xkd submit logs {submission.id} shows its log, xkd submit stop {submission.id} ends it"


def _package_text(package: Package) -> str:
    largest = ", ".join(f"{name} {byte_size(size)}" for name, size in package.largest(_SHOWN_FILES))
    return (
        f"package: {byte_size(package.num_bytes)} in {package.num_files} files, largest {largest}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xkd submit",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--address",
        help="job server, http://HOST:8265; default: RAY_API_SERVER_ADDRESS",
    )
    parser.add_argument(
        "--home",
        help="XKD_HOME on the cluster; default: XKD_HOME here, or that of the cluster's image",
    )
    parser.add_argument(
        "--environment",
        choices=ENVIRONMENTS,
        default="image",
        help="packages of the nodes' image (default), or installed by pip or uv at the start",
    )
    parser.add_argument(
        "--driver-cpus",
        type=float,
        help="runs the driver on a node with so many free CPUs instead of on the head",
    )
    parser.add_argument("--detach", action="store_true", help="does not follow the log")
    parser.add_argument("--dry-run", action="store_true", help="checks, but submits nothing")
    parser.add_argument("job", metavar="JOB", help="a job of `xkd --help`, or list, logs, stop")
    parser.add_argument("arguments", nargs="*", metavar="CONFIG [key=value ...]")
    return parser

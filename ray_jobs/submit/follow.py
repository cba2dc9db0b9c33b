"""Follows submitted jobs: log, exit code, list."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import aiohttp
from ray.job_submission import JobStatus, JobSubmissionClient

from pipelines.errors import UserError
from ray_jobs.cli.console import table
from ray_jobs.submit.server import answering, is_unknown

_FAILED = 1
_DETACHED = 130
_RECONNECT_SECONDS = 2.0
_PATIENCE_SECONDS = 300.0
"""How long a job server may be away, for example while the head restarts."""
_SILENCE_SECONDS = 15.0
"""Time without output after which the job server is asked whether it is still there. A connection
to a machine that has lost its power stays open for hours."""


def follow(client: JobSubmissionClient, job: str) -> int:
    """Prints the log of a job as it grows; returns its exit code.

    Ctrl-C leaves the job running and returns 130.

    Raises:
        UserError: If there is no such job, or the server stays away.
    """
    with answering(client, job):
        client.get_job_status(job)
    try:
        if not asyncio.run(_print_log(client, job)):
            print(
                f"the cluster does not know {job} any more, for its head is another one now; the "
                "same command continues"
            )
            return _FAILED
    except KeyboardInterrupt:
        print(f"\ndetached; {job} goes on. xkd submit logs {job} attaches again")
        return _DETACHED
    with answering(client, job):
        return _exit_code(client, job)


async def _print_log(client: JobSubmissionClient, job: str) -> bool:
    """Prints until the job has ended; a lost connection continues where it broke off.

    Returns:
        False if the job server does not know the job any more.
    """
    printed, away_since = 0, None
    while True:
        received = 0
        try:
            async for text in _texts(client, job):
                new = text[max(printed - received, 0) :]
                received += len(text)
                if new:
                    print(new, end="", flush=True)
                    printed = max(printed, received)
            if client.get_job_status(job).is_terminal():
                return True
            away_since = None
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            if _is_unknown(client, job):
                return False
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > _PATIENCE_SECONDS:
                raise UserError(f"the job server does not answer any more: {error}") from error
        await asyncio.sleep(_RECONNECT_SECONDS)


async def _texts(client: JobSubmissionClient, job: str) -> AsyncIterator[str]:
    """Yields the log from its beginning as it grows, while the job server answers.

    Raises:
        OSError: If the server does not answer.
        RuntimeError: If it does not know the job, or the connection breaks off.
        aiohttp.ClientError: If it refuses the connection.
    """
    texts = client.tail_job_logs(job)
    following = asyncio.ensure_future(anext(texts, None))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=_SILENCE_SECONDS)
            if not done:
                client.get_job_status(job)
                continue
            text = following.result()
            if text is None:
                return
            yield text
            following = asyncio.ensure_future(anext(texts, None))
    finally:
        following.cancel()


def _is_unknown(client: JobSubmissionClient, job: str) -> bool:
    """Whether the job server answers that there is no such job."""
    try:
        client.get_job_status(job)
    except (OSError, RuntimeError) as error:
        return is_unknown(error)
    return False


def _exit_code(client: JobSubmissionClient, job: str) -> int:
    info = client.get_job_info(job)
    if info.driver_exit_code is not None:
        # A signal ends a process with a negative code.
        return int(info.driver_exit_code) % 256
    if info.status == JobStatus.STOPPED:
        return os.EX_TEMPFAIL  # the same command continues
    if info.status == JobStatus.FAILED:
        reason = (info.message or "no reason given").strip().splitlines()[-1]
        print(f"{job} failed: {reason}")
        return _FAILED
    return 0


def listed(client: JobSubmissionClient) -> str:
    """Returns a table of the jobs, the newest first."""
    with answering(client):
        found = client.list_jobs()
    jobs = sorted(found, key=lambda job: -(job.start_time or 0))
    rows = [("job", "status", "started", "command")]
    rows += [
        (
            job.submission_id or job.job_id or "",
            str(job.status.value),
            _time(job.start_time),
            " ".join(job.entrypoint.split())[:60],
        )
        for job in jobs
        if (job.metadata or {}).get("xkd.job") != "probe"
    ]
    return table(rows)


def _time(milliseconds: int | None) -> str:
    if not milliseconds:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")

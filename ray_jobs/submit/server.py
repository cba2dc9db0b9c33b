"""Connects to Ray's job server."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from pipelines.errors import UserError
from pipelines.redaction import one_line, redacted

_CONNECT_SECONDS = 5.0
_AGENT_SECONDS = 60.0
_NO_AGENT = "No available agent"
_NOT_FOUND = "status code 404"
_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"


def is_unknown(error: Exception) -> bool:
    """Whether an error of a client says that there is no such job."""
    return isinstance(error, RuntimeError) and _NOT_FOUND in str(error)


@contextmanager
def answering(client: JobSubmissionClient, job: str = "") -> Iterator[None]:
    """Turns what a client raises in the block into one line.

    Args:
        client: The client.
        job: The job that the block asks for.

    Raises:
        UserError: If the server does not know the job, fails, or does not answer any more.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:  # those of `requests` are OSErrors
        where = redacted(client.get_address())
        if is_unknown(error):
            raise UserError(f"no job {job!r} at {where}; xkd submit list shows all") from error
        raise UserError(f"the job server at {where} fails: {one_line(error)}") from error


def submit(client: JobSubmissionClient, **request: Any) -> str:
    """Submits a job and returns its ID; a head that has just started is given time.

    Raises:
        UserError: If the server refuses.
    """
    until = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            return client.submit_job(**request)
        except (RuntimeError, OSError) as error:
            if _NO_AGENT not in str(error) or time.monotonic() > until:
                raise UserError(f"the job server refuses: {one_line(error)}") from error
            time.sleep(1)


def connected_client(address: str | None) -> JobSubmissionClient:
    """Returns a client of a job server that answers and takes the token.

    Raises:
        UserError: If there is no address, no answer, or the token is missing or wrong.
    """
    address = address or os.environ.get(_ADDRESS_VARIABLE)
    if not address:
        raise UserError(f"--address http://HOST:8265 or {_ADDRESS_VARIABLE} must name a job server")
    what = f"--address ({redacted(address)})"
    parts = urlsplit(address)
    try:
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        host, port = None, 0
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"{what} must be http://HOST:PORT of Ray's dashboard, usually port 8265")
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(f"{what} does not answer: {error}") from error
    # The client reads this variable even if it is given another address.
    os.environ[_ADDRESS_VARIABLE] = address
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UserError(
            f"{what} asks for a token, or refuses this one: set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        ) from error
    except Exception as error:  # requests raises many kinds for what is no job server
        raise UserError(f"{what} is no job server of Ray: {one_line(error)}") from error

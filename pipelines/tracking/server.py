"""The MLflow server: where it is, whether it answers, and calls that outlast its absence.

Importing this module sets what MLflow reads from the environment, so the other modules of the room
import it before MLflow.
"""

import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pipelines.config.base import TrackingConfig
from pipelines.errors import JobFailed, UserError
from pipelines.paths import home
from pipelines.redaction import one_line, redacted

# Before mlflow is imported: no telemetry, and a server that is away fails in seconds.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)
T = TypeVar("T")


def _without_password(record: logging.LogRecord) -> bool:
    record.msg, record.args = redacted(record.getMessage()), ()
    return True


for handler in logging.getLogger("mlflow").handlers:
    handler.addFilter(_without_password)  # its monitor warns of a server with the whole URI

SQLITE = "sqlite:///"
SQLITE_HEADER = b"SQLite format 3\x00"
RETRY_SECONDS = 2.0
MAX_RETRY_SECONDS = 30.0
CONNECT_SECONDS = 5.0


def tracking_uri(config: TrackingConfig) -> str:
    """Where MLflow is: the setting, else MLFLOW_TRACKING_URI, else an sqlite file at home."""
    given = config.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"{SQLITE}{home('mlflow.db') / 'mlflow.db'}"


def check_tracking(config: TrackingConfig) -> None:
    """Makes sure that MLflow can be reached, before any work starts.

    Raises:
        UserError: if the address is of a kind that is not supported or nothing answers there.
    """
    try:
        uri = tracking_uri(config)
    except ValueError as error:
        raise UserError(f"tracking.uri {error}") from error
    kinds = f"tracking.uri ({redacted(uri)}) must be http(s)://HOST:PORT or sqlite:////FILE"
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"{kinds}: {error}") from None  # its traceback would show a password
    if parts.scheme == "sqlite":
        _check_sqlite(Path(uri.removeprefix(SQLITE)))
    elif parts.scheme in ("http", "https") and host:
        _check_server(uri, host, port or (443 if parts.scheme == "https" else 80))
    else:
        raise UserError(kinds)


def _check_sqlite(file: Path) -> None:
    what = f"tracking.uri (sqlite:///{file})"
    if not file.is_absolute():
        raise UserError(f"{what} must name an absolute file")
    there = file
    while not os.path.exists(there):
        there = there.parent
    if not os.access(there, os.W_OK):
        raise UserError(f"{what} is not writable")
    if there == file and not (file.is_file() and _is_database(file)):
        raise UserError(f"{what} must name a database of SQLite or a file that is not there yet")
    if there != file and not there.is_dir():
        raise UserError(f"{what} must lie in a folder, but {there} is a file")


def _is_database(file: Path) -> bool:
    """Whether it begins as one, or is empty as one may be at first."""
    with file.open("rb") as content:
        return content.read(len(SQLITE_HEADER)) in (b"", SQLITE_HEADER)


def _check_server(uri: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
        MlflowClient(uri).search_experiments(max_results=1)
    except (OSError, MlflowException) as error:
        raise UserError(
            f"tracking.uri ({redacted(uri)}) does not answer as an MLflow server: {one_line(error)}"
        ) from error


def patiently(uri: str, patience_seconds: float, act: Callable[[], T]) -> T:
    """Does something at MLflow, which may be tried again while it is away.

    Raises:
        JobFailed: if MLflow refuses, or is away for longer than that.
    """
    give_up_at = time.monotonic() + patience_seconds
    pause = RETRY_SECONDS
    while True:
        try:
            return act()
        except (MlflowException, OSError) as error:
            if not _is_away(error) or time.monotonic() + pause > give_up_at:
                raise JobFailed(f"MLflow ({redacted(uri)}) fails: {one_line(error)}") from error
            logger.warning("MLflow does not answer, trying again: %s", one_line(error))
        time.sleep(pause)
        pause = min(2 * pause, MAX_RETRY_SECONDS)


def _is_away(error: Exception) -> bool:
    """Whether it may go away by itself: no answer, too busy, or a mistake of the server's own."""
    status = error.get_http_status_code() if isinstance(error, MlflowException) else 500
    return status >= 500 or status == 429

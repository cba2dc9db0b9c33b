"""The MLflow server: its address, a check that it answers, and retries while it is away."""

import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.config.base import TrackingSettings
from pipelines.errors import JobFailed, UserError
from pipelines.paths import home
from pipelines.redaction import one_line, redacted
from pipelines.tracking.moved_artifacts import mend_moved_artifacts
from pipelines.tracking.sqlite import SQLITE, sqlite_file

logger = logging.getLogger(__name__)
T = TypeVar("T")


def _without_password(record: logging.LogRecord) -> bool:
    record.msg, record.args = redacted(record.getMessage()), ()
    return True


for handler in logging.getLogger("mlflow").handlers:
    handler.addFilter(_without_password)  # MLflow's monitor logs the whole URI of a server

_SQLITE_HEADER = b"SQLite format 3\x00"
RETRY_SECONDS = 2.0
_MAX_RETRY_SECONDS = 30.0
_CONNECT_SECONDS = 5.0


def tracking_uri(config: TrackingSettings) -> str:
    """Returns the setting, else MLFLOW_TRACKING_URI, else an SQLite file in XKD's home folder."""
    given = config.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    folder = home("mlflow.db")
    if isinstance(folder, str):
        raise ValueError(
            f"is not set, and XKD_HOME ({folder}) cannot hold an SQLite file: set "
            "MLFLOW_TRACKING_URI=http://HOST:5000, or sqlite:////FILE on a disk"
        )
    return f"{SQLITE}{folder / 'mlflow.db'}"


def check_tracking(config: TrackingSettings) -> None:
    """Checks that MLflow can be reached, before any work starts.

    If the folder of an SQLite file was moved, artifacts are found again from then on.

    Raises:
        UserError: if the kind of address is not supported or nothing answers there.
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
        is_default = not (config.uri or os.environ.get("MLFLOW_TRACKING_URI"))
        _check_sqlite(uri, is_default=is_default)
    elif parts.scheme in ("http", "https") and host:
        _check_server(uri, host, port or (443 if parts.scheme == "https" else 80))
    else:
        raise UserError(kinds)


def _check_sqlite(uri: str, *, is_default: bool) -> None:
    what = f"tracking.uri ({uri})"
    file = sqlite_file(uri)
    if file is None or not file.is_absolute():
        raise UserError(f"{what} must name an absolute file")
    if is_default and file != Path(uri.removeprefix(SQLITE)):
        raise UserError(
            f"{what} would be read as {file}: MLflow decodes %XX and takes ? for the end of a "
            "path; rename that folder, or set tracking.uri to a file in another one"
        )
    there = file
    while not os.path.exists(there):
        there = there.parent
    if not os.access(there, os.W_OK):
        raise UserError(f"{what} is not writable")
    if there == file and not (file.is_file() and _is_database(file)):
        raise UserError(f"{what} must name a database of SQLite or a file that is not there yet")
    if there != file and not there.is_dir():
        raise UserError(f"{what} must lie in a folder, but {there} is a file")
    mend_moved_artifacts(file)


def _is_database(file: Path) -> bool:
    """Whether a file has SQLite's header or is empty, as a new database is."""
    with file.open("rb") as content:
        return content.read(len(_SQLITE_HEADER)) in (b"", _SQLITE_HEADER)


def _check_server(uri: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
        MlflowClient(uri).search_experiments(max_results=1)
    except (OSError, MlflowException) as error:
        raise UserError(
            f"tracking.uri ({redacted(uri)}) does not answer as an MLflow server: {one_line(error)}"
        ) from error


def retry_while_away(uri: str, patience_seconds: float, act: Callable[[], T]) -> T:
    """Calls `act`, which sends a request to MLflow, again and again while MLflow is away.

    Args:
        uri: The server, for messages.
        patience_seconds: How long to keep trying.
        act: May run more than once.

    Raises:
        JobFailed: if MLflow refuses the request or stays away for longer.
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
        pause = min(2 * pause, _MAX_RETRY_SECONDS)


def _is_away(error: Exception) -> bool:
    """Whether waiting may help: no answer, too many requests, or an error inside the server."""
    status = error.get_http_status_code() if isinstance(error, MlflowException) else 500
    return status >= 500 or status == 429

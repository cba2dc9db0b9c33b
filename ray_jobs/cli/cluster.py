"""The Ray that a job runs on: its own, one at an address, or the one that it was submitted to."""

import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from pipelines.config.base import RaySettings
from pipelines.errors import Terminated, UserError
from pipelines.paths import PACKAGES
from ray_jobs.cli.environment import worker_environment

_CONNECT_SECONDS = 5.0
_MAX_PORT = 65_535
_MAX_SOCKET_BYTES = 107
_SOCKET_NAME_BYTES = len("/session_2026-01-31_12-00-00_123456_4194304/sockets/plasma_store")
"""What Ray adds to its folder, with the largest process number."""
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in a submitted job."""


@contextmanager
def connected(config: RaySettings, *, dashboard: bool = False) -> Iterator[None]:
    """Connects to Ray for the length of the block.

    Args:
        config: Which Ray.
        dashboard: Start one in a Ray of its own: Ray Train gives back the resources of a trial that
            Tune has ended only if it can ask the dashboard whether the trial still lives.
    """
    # Ray Data tells on the console what a job's own progress tells better.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    address = ray_address(config)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        _give_token()
        # A harmless line about each pool of actors would be all that its core logs to the console.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        options |= {
            "address": "local",
            "num_cpus": config.num_cpus,
            "object_store_memory": config.object_store_bytes,
            "include_dashboard": dashboard,
        }
    else:
        options["address"] = address
        submitted = os.environ.get(_JOB_CONFIG)
        options["runtime_env"] = {"env_vars": worker_environment(submitted)}
        if submitted is None:
            # The cluster's workers get the code from here; a submitted job has brought its own.
            modules = [str(PACKAGES / name) for name in ("xkd_core", "pipelines", "ray_jobs")]
            options["runtime_env"]["py_modules"] = modules
    try:
        with _own_termination(), _without_log_level_line():
            ray.init(**options)
        yield
    finally:
        ray.shutdown()


def _give_token() -> None:
    """Gives a Ray of its own a token in the environment where it cannot keep one in HOME.

    Ray writes `~/.ray/auth_token` and fails without; in a container HOME is often not writable.
    """
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        file = os.path.expanduser("~/.ray/auth_token")
        if not os.path.exists(file) and not _can_make(os.path.dirname(file)):
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _can_make(folder: str) -> bool:
    """Whether a folder is there and writable, or can be made."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


@contextmanager
def _own_termination() -> Iterator[None]:
    """Keeps this process's way to end on SIGTERM while Ray starts, which sets handlers that exit.

    Raises:
        Terminated: if one of Ray's handlers had its way.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:  # only these handlers exit there
        raise Terminated from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _without_log_level_line() -> Iterator[None]:
    """Leaves out the line in which Ray's core says on stderr which level it is set to."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            for line in caught:
                if b"Set ray log level" not in line:
                    os.write(2, line)


def ray_address(config: RaySettings) -> str | None:
    """The address asked for, or None for a Ray of this process's own, which `local` is as well."""
    address = config.address or os.environ.get("RAY_ADDRESS")
    return None if address in ("", "local") else address


def _check_socket_folder() -> None:
    """Makes sure that a Ray of its own can name its sockets, whose paths are short."""
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(name, "/tmp")
    length = len(os.fsencode(f"{folder.rstrip('/')}/ray")) + _SOCKET_NAME_BYTES
    if length > _MAX_SOCKET_BYTES:
        raise UserError(
            f"{name} ({folder}) is too long: Ray's sockets there would have paths "
            f"of {length} bytes, and Linux allows {_MAX_SOCKET_BYTES}; set RAY_TMPDIR=/tmp or "
            "another short folder"
        )


def check_ray(config: RaySettings) -> None:
    """Makes sure that something answers at the address, before any work starts.

    Raises:
        UserError: if nothing does.
    """
    address = ray_address(config)
    if address is None:
        _check_socket_folder()
        return
    if address == "auto":
        if not Path("/tmp/ray/ray_current_cluster").exists():
            raise UserError("ray.address (auto) found no running Ray on this machine")
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit() or int(port) > _MAX_PORT:
        raise UserError(f"ray.address ({address}) must be auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(f"ray.address ({address}) does not answer: {error}") from error

"""The Ray that a job runs on: its own, a cluster at an address, or the one it was submitted to."""

import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray

from pipelines.config.base import RaySettings
from pipelines.errors import JobFailed, Terminated, UserError
from pipelines.nodes import wait_for_nodes, watched_nodes
from pipelines.paths import PACKAGES
from pipelines.redaction import one_line
from ray_jobs.cli.environment import (
    OWN_SETUP,
    WORKER_SETUP,
    submitted_environment,
    worker_environment,
)

_CONNECT_SECONDS = 5.0
_MAX_PORT = 65_535
_MAX_SOCKET_BYTES = 107
_SOCKET_NAME_BYTES = len("/session_2026-01-31_12-00-00_123456_4194304/sockets/plasma_store")
"""Longest path that Ray appends to its folder, with the largest process ID."""
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets in a submitted job."""


def without_dashboard() -> dict[str, Any]:
    """Returns options of a Ray without a dashboard.

    Ray records an address of its dashboard anyway, by default port 8265, where the dashboard of
    another Ray may answer. Ray Train asks there whether a training's controller is alive, and ends
    the training if the other Ray does not know it. Nothing answers at an unused port.
    """
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
    return {"include_dashboard": False, "dashboard_port": port}


@contextmanager
def connected(config: RaySettings, *, dashboard: bool = False) -> Iterator[None]:
    """Connects to Ray while the block runs.

    Args:
        config: Which Ray to connect to.
        dashboard: Start a dashboard in a Ray of its own. Ray Train frees the resources of a trial
            that Tune ended only if the dashboard confirms that the trial is gone.
    """
    # The job's own progress replaces that of Ray Data.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    address = ray_address(config)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        _give_token()
        # Otherwise Ray's core logs a harmless line about each pool of actors.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        options |= {
            "address": "local",
            "num_cpus": config.num_cpus,
            "object_store_memory": config.object_store_bytes,
            "runtime_env": dict(OWN_SETUP),
            **({"include_dashboard": True} if dashboard else without_dashboard()),
        }
    else:
        options["address"] = address
        submitted = os.environ.get(_JOB_CONFIG)
        options["runtime_env"] = {"env_vars": worker_environment(submitted)}
        if "worker_process_setup_hook" not in submitted_environment(submitted):
            options["runtime_env"] |= WORKER_SETUP
        if submitted is None:
            # Workers of the cluster get the code from here. A submitted job has uploaded it.
            modules = [str(PACKAGES / name) for name in ("xkd_core", "pipelines", "ray_jobs")]
            options["runtime_env"]["py_modules"] = modules
    try:
        _start(options)
        if address is not None:
            wait_for_nodes(_check_cpus, [{"CPU": 1.0}], config.wait_seconds)
        with nullcontext() if address is None else watched_nodes():
            yield
    finally:
        ray.shutdown()


def _check_cpus(nodes: Sequence[Mapping[str, float]]) -> None:
    if not any(node.get("CPU", 0.0) >= 1 for node in nodes):
        raise UserError("the job needs a CPU, but no node of Ray has one for tasks")


def _start(options: dict[str, Any]) -> None:
    """Starts Ray or connects to it.

    Raises:
        JobFailed: If Ray fails, for example because the machine is too busy to start it in time.
    """
    try:
        with _own_termination(), _without_log_level_line():
            ray.init(**options)
    except Exception as error:  # Ray raises exceptions of many types, and plain ones
        raise JobFailed(f"Ray did not start: {one_line(error)}") from error


def _give_token() -> None:
    """Sets a token for a Ray of its own in the environment if HOME is not writable.

    Ray writes `~/.ray/auth_token` and fails otherwise. In containers HOME is often read-only.
    """
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        file = os.path.expanduser("~/.ray/auth_token")
        if not os.path.exists(file) and not _can_make(os.path.dirname(file)):
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _can_make(folder: str) -> bool:
    """Returns whether a folder is writable or can be created."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


@contextmanager
def _own_termination() -> Iterator[None]:
    """Restores the handler of SIGTERM after Ray has started, which installs handlers that exit.

    Raises:
        Terminated: If a handler of Ray ran.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:  # only these handlers exit here
        raise Terminated from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _without_log_level_line() -> Iterator[None]:
    """Drops the line in which Ray's core reports its log level on stderr."""
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
    """Returns the address of a cluster; None for a Ray of its own, also for `local`."""
    address = config.address or os.environ.get("RAY_ADDRESS")
    return None if address in ("", "local") else address


def _check_socket_folder() -> None:
    """Checks that the paths of the sockets of a Ray of its own are short enough."""
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
    """Checks that the address of Ray answers, before any work starts.

    Raises:
        UserError: If it does not.
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

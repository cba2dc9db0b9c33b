"""The Ray that a job runs on: its own, one at an address, or the one that it was submitted to."""

import logging
import os
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

CONNECT_SECONDS = 5.0
MAX_PORT = 65_535
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


def check_ray(config: RaySettings) -> None:
    """Makes sure that something answers at the address, before any work starts.

    Raises:
        UserError: if nothing does.
    """
    address = ray_address(config)
    if address is None:
        return
    if address == "auto":
        if not Path("/tmp/ray/ray_current_cluster").exists():
            raise UserError("ray.address (auto) found no running Ray on this machine")
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit() or int(port) > MAX_PORT:
        raise UserError(f"ray.address ({address}) must be auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(f"ray.address ({address}) does not answer: {error}") from error

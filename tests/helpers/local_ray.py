"""A Ray that a test starts as a job does."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray

from ray_jobs.cli.cluster import without_dashboard
from ray_jobs.cli.environment import ENVIRONMENT, OWN_SETUP


@contextmanager
def job_environment() -> Iterator[None]:
    """The environment variables of a job while the block runs; workers start in 20 s or fail."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@contextmanager
def own_ray(object_store_memory: int = 200_000_000) -> Iterator[None]:
    """A Ray of this process with two CPUs; its workers have the environment of this moment."""
    end_shared_ray()
    _start(object_store_memory)
    try:
        yield
    finally:
        ray.shutdown()


def start_shared_ray() -> None:
    """Starts the Ray that modules of this process share, unless it runs."""
    if not ray.is_initialized():
        _start(200_000_000)


def end_shared_ray() -> None:
    """Ends it, for tests that start another one or need another environment in its workers."""
    ray.shutdown()


def _start(object_store_memory: int) -> None:
    ray.init(
        address="local",
        num_cpus=2,
        **without_dashboard(),
        object_store_memory=object_store_memory,
        log_to_driver=False,
        runtime_env=dict(OWN_SETUP),
    )

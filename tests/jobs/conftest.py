"""One tiny run of the main job that this folder's tests look at, and a Ray to train on."""

from collections.abc import Iterator

import pytest

from tests.helpers.local_ray import job_environment, own_ray
from tests.helpers.programs import TINY, TinyRun, run_program


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The main job on 24 made clips."""
    home = tmp_path_factory.mktemp("home")
    done = run_program("run", "conf/run/smoke.yaml", *TINY, home=home)
    assert done.code == 0, done.out + done.err
    return TinyRun(home, done)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of this process with two CPUs, in the environment of a job."""
    with job_environment(), own_ray(object_store_memory=100_000_000):
        yield

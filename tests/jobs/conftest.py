"""One tiny run of the main job that this folder's tests look at."""

import pytest

from tests.helpers.programs import TINY, TinyRun, run_program


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The main job on 24 made clips."""
    home = tmp_path_factory.mktemp("home")
    done = run_program("run", "conf/run/smoke.yaml", *TINY, home=home)
    assert done.code == 0, done.out + done.err
    return TinyRun(home, done)

"""Fixtures of all tests: where outside data lies, random numbers that no test leaks."""

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

import ray_jobs  # noqa: F401 - sets what MLflow and Ray read from the environment

REPOSITORY = Path(__file__).resolve().parents[1]
# Before `xkd_core`, whose type checks keep compiled files of their own of all that it is the first
# to import: 1,900 modules, which would be compiled again.
for library in ("timm", "torchaudio"):
    importlib.import_module(library)
OWN_GOLDEN = Path(__file__).with_name("golden.json")

# Programs that tests start import this checkout, and the tests' helpers.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])
)

# No database: examples follow from the test alone. Hypothesis still writes the constants that it
# finds in our code, from the moment tests are collected, and not into the checkout.
HYPOTHESIS = tempfile.TemporaryDirectory(prefix="hypothesis-")
set_hypothesis_home_dir(HYPOTHESIS.name)
settings.register_profile("deterministic", deadline=None, derandomize=True, database=None)
settings.load_profile("deterministic")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="renew the numbers in tests/golden.json instead of comparing with them",
    )


def pytest_collection_finish() -> None:
    if "mlflow" in sys.modules:  # a machine for GPU tests has none
        from tests.helpers.mlflow_tables import migrate_once

        migrate_once()


@pytest.fixture
def own_golden(request: pytest.FixtureRequest) -> Callable[[str, dict[str, float]], None]:
    """Compares numbers with those kept under a name; with `--update-golden` keeps them instead."""

    def check(name: str, numbers: dict[str, float]) -> None:
        kept = json.loads(OWN_GOLDEN.read_text(encoding="utf-8")) if OWN_GOLDEN.exists() else {}
        if request.config.getoption("--update-golden"):
            kept[name] = {key: float(f"{value:.7g}") for key, value in numbers.items()}
            text = json.dumps(dict(sorted(kept.items())), indent=1)
            OWN_GOLDEN.write_text(text + "\n", encoding="utf-8")
            return
        assert name in kept, f"{name} is not in {OWN_GOLDEN.name}; --update-golden puts it there"
        # Float32 on another processor: sums in another order, three steps long.
        assert numbers == pytest.approx(kept[name], rel=1e-4, abs=1e-6)

    return check


def _outside(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable, REPOSITORY / default))
    if not folder.is_dir():
        pytest.skip(f"{variable} ({folder}) is not there")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Numbers of the published method."""
    return _outside("XKD_GOLDEN_DIR", "../shared/golden")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real media, good and odd."""
    return _outside("XKD_DATA_DIR", "../shared/data")


@pytest.fixture(autouse=True)
def fixed_rng() -> Iterator[None]:
    """Each test begins with the same random numbers and leaves the state as it found it."""
    numpy_state = np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    np.random.set_state(numpy_state)


@pytest.fixture(autouse=True)
def fair_scheduling() -> Iterator[None]:
    """Each test leaves the scheduling policy as it found it.

    The AV1 encoder that some tests write media with gives the calling thread real-time priority
    if it runs as root, and all other processes then starve for the rest of the session.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    yield
    if os.sched_getscheduler(0) != policy:
        os.sched_setscheduler(0, policy, parameters)

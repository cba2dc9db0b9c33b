"""Fixtures of all tests: where outside data lies, random numbers that no test leaks."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]

settings.register_profile("deterministic", deadline=None, derandomize=True)
settings.load_profile("deterministic")


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

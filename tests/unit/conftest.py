"""Fixtures of tests of the data plane."""

from collections.abc import Iterator

import pytest

from tests.helpers.local_ray import own_ray


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of two CPUs; its workers have the environment of the moment it starts."""
    with own_ray():
        yield

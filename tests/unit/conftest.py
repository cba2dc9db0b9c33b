"""Fixtures of tests of the data plane."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of two CPUs; its workers have the environment of the moment it starts."""
    from tests.helpers.local_ray import own_ray  # not at the top: a machine for GPU tests has none

    with own_ray():
        yield

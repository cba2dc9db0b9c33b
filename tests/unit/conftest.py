"""Fixtures of tests of the data plane."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def local_ray(no_ray_of_others: None) -> None:
    """A Ray of two CPUs that modules share: its workers may be those of an earlier module."""
    from tests.helpers.local_ray import start_shared_ray

    start_shared_ray()


@pytest.fixture(scope="module")
def ray_of_this_environment() -> Iterator[None]:
    """A Ray of two CPUs of its own; its workers have the environment of the moment it starts."""
    from tests.helpers.local_ray import own_ray

    with own_ray():
        yield


@pytest.fixture(scope="module", autouse=True)
def no_ray_of_others(request: pytest.FixtureRequest) -> None:
    """Ends the shared Ray before a module that starts Ray by itself."""
    items = [item for item in request.session.items if item.path == request.path]
    starts_ray = any(item.get_closest_marker("ray") for item in items)
    shares_it = any("local_ray" in getattr(item, "fixturenames", ()) for item in items)
    if starts_ray and not shares_it:
        from tests.helpers.local_ray import end_shared_ray

        end_shared_ray()

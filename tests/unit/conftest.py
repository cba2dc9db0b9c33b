"""Fixtures of tests of the data plane, and the Ray that their modules share.

Modules that use `local_ray` run one after the other. Between them Ray stays, and its workers with
it; before any other module it ends, so that no test finds a Ray which it did not ask for.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the modules that share a Ray together, after tests of other folders."""
    sharing = _sharing(items)
    items.sort(key=lambda item: (item.path.is_relative_to(HERE), item.path not in sharing))


def _sharing(items: Sequence[pytest.Item]) -> set[Path]:
    uses = (item for item in items if "local_ray" in getattr(item, "fixturenames", ()))
    return {item.path for item in uses if item.path.is_relative_to(HERE)}


@pytest.fixture(scope="module")
def local_ray(no_ray_of_others: None) -> None:
    """A Ray of two CPUs; its workers may be those of an earlier module."""
    from tests.helpers.local_ray import start_shared_ray  # a machine for GPU tests has none

    start_shared_ray()


@pytest.fixture(scope="module")
def ray_of_this_environment(no_ray_of_others: None) -> Iterator[None]:
    """A Ray of two CPUs; its workers have the environment of the moment it starts."""
    from tests.helpers.local_ray import own_ray  # a machine for GPU tests has none

    with own_ray():
        yield


@pytest.fixture(scope="module", autouse=True)
def no_ray_of_others(request: pytest.FixtureRequest) -> None:
    """Ends the shared Ray before a module that does not use it."""
    if "ray" in sys.modules and request.path not in _sharing(request.session.items):
        from tests.helpers.local_ray import end_shared_ray

        end_shared_ray()

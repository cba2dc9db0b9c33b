"""Replicas that do not fit are a mistake: Ray Serve would wait for room forever."""

import pytest

from pipelines.config.serve import ServeConfig
from pipelines.errors import UserError
from pipelines.serving.room import check_room

SMALL, LARGE = {"CPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}


def config(**settings):
    """Not validated, which would ask for the packages of Ray Serve."""
    return ServeConfig.model_construct(model="a@b", **settings)


@pytest.mark.parametrize(
    ("settings", "nodes"),
    [
        ({}, [SMALL]),
        ({"num_replicas": 2}, [SMALL]),
        ({"num_replicas": 3}, [SMALL, {"CPU": 1.0}]),
        ({"num_replicas": 4, "num_cpus": 0.5}, [SMALL]),
        ({"num_gpus": 1, "num_replicas": 2}, [SMALL, LARGE]),
        ({"num_gpus": 0.5, "num_replicas": 4}, [LARGE]),
        ({"num_gpus": 2}, [LARGE]),
    ],
)
def test_what_fits_passes(settings, nodes):
    check_room(config(**settings), nodes)


@pytest.mark.parametrize(
    ("settings", "nodes", "room"),
    [
        ({"num_replicas": 3}, [SMALL], "2 replicas on 2 CPUs and 0 GPUs"),
        ({"num_gpus": 1}, [SMALL], "0 replicas on 2 CPUs and 0 GPUs"),
        ({"num_cpus": 3}, [SMALL, SMALL], "0 replicas on 4 CPUs and 0 GPUs"),
        ({"num_gpus": 0.6, "num_replicas": 3}, [LARGE], "2 replicas on 8 CPUs and 2 GPUs"),
        ({"num_gpus": 1, "num_cpus": 8, "num_replicas": 2}, [LARGE], "1 replica on 8 CPUs"),
        ({}, [], "0 replicas on 0 CPUs and 0 GPUs"),
    ],
)
def test_what_does_not_fit_is_a_mistake_that_says_how_much_does(settings, nodes, room):
    with pytest.raises(UserError, match=rf"^num_replicas \(\d\) with .* room for {room}"):
        check_room(config(**settings), nodes)

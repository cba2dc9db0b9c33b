"""Whether the replicas of a service fit on its nodes. Ray Serve would wait for room silently."""

import math
from collections.abc import Mapping, Sequence

from pipelines.config.serve import ServeConfig
from pipelines.errors import UserError
from pipelines.quantities import counted


def check_room(config: ServeConfig, nodes: Sequence[Mapping[str, float]]) -> None:
    """Makes sure that all replicas fit.

    Args:
        config: The settings of the service.
        nodes: The CPUs and GPUs of each node, as Ray names them.

    Raises:
        UserError: If they do not.
    """
    room = sum(_room_on(node, config) for node in nodes)
    if room >= config.num_replicas:
        return
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    each = f"num_cpus ({config.num_cpus:g}) and num_gpus ({config.num_gpus:g})"
    raise UserError(
        f"num_replicas ({config.num_replicas}) with {each} each do not fit: there is room for "
        f"{counted(room, 'replica')} on {cpus:g} CPUs and {gpus:g} GPUs"
    )


def _room_on(node: Mapping[str, float], config: ServeConfig) -> int:
    """Returns how many replicas a node can hold; a part of a GPU lies on one GPU."""
    gpus = node.get("GPU", 0.0)
    room = math.floor(node.get("CPU", 0.0) / config.num_cpus)
    if 0 < config.num_gpus < 1:
        return min(room, math.floor(gpus) * math.floor(1 / config.num_gpus))
    if config.num_gpus:
        return min(room, math.floor(gpus / config.num_gpus))
    return room

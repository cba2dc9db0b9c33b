"""What each worker of a training gets of the CPUs and GPUs that Ray has."""

from collections.abc import Mapping, Sequence

from pipelines.config.pretrain import PretrainConfig
from pipelines.errors import UserError


def worker_resources(
    config: PretrainConfig, nodes: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """What each worker gets of nodes with these resources.

    Raises:
        UserError: if the nodes have no room for the workers, for which Ray would wait for ever.
    """
    least, most = config.worker_range
    cpus = config.cpus_per_worker
    if cpus is None:
        cpus = 1.0 if config.use_gpu else _cpu_share(nodes, most)
    worker = {"CPU": cpus} | ({"GPU": 1.0} if config.use_gpu else {})
    largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    if config.cpus_per_worker is not None and cpus > largest:
        raise UserError(
            f"cpus_per_worker ({cpus:g}) must not be above the {largest:g} CPUs of the largest node"
        )
    # A worker lies on one node: what is left over on several of them adds up to none.
    places = sum(
        min(int(node.get(kind, 0.0) // amount) for kind, amount in worker.items()) for node in nodes
    )
    if places < least:
        needs = " and ".join(f"{least} x {amount:g} {kind}s" for kind, amount in worker.items())
        have = "; ".join(
            ", ".join(f"{node.get(kind, 0.0):g} {kind}s" for kind in worker) for node in nodes
        )
        raise UserError(
            f"num_workers ({least}) needs {needs}, but the nodes of Ray have {have}: "
            f"room for {places}"
        )
    return worker


def _cpu_share(nodes: Sequence[Mapping[str, float]], num_workers: int) -> float:
    """The most CPUs that each of so many workers can have, or 1."""
    cpus = [int(node.get("CPU", 0.0)) for node in nodes]
    fitting = (
        share
        for share in range(max(cpus, default=1), 1, -1)
        if sum(have // share for have in cpus) >= num_workers
    )
    return float(next(fitting, 1))

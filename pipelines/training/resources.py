"""CPUs and GPUs of each worker of a training."""

from collections.abc import Mapping, Sequence

from pipelines.config.pretrain import PretrainConfig
from pipelines.errors import UserError
from pipelines.quantities import counted


def worker_resources(
    config: PretrainConfig, nodes: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Returns the resources of each worker on nodes with the given resources.

    Raises:
        UserError: If the workers do not fit on the nodes; Ray would wait forever.
    """
    least, most = config.worker_range
    cpus = config.cpus_per_worker
    if cpus is None:
        cpus = 1.0 if config.use_gpu else _cpu_share(nodes, most)
    worker = _one_worker(config, cpus)
    largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    if config.cpus_per_worker is not None and cpus > largest > 0:
        raise UserError(
            f"cpus_per_worker ({cpus:g}) must not be above the "
            f"{counted(largest, 'CPU')} of the largest node"
        )
    # A worker needs one node; remainders on several nodes do not add up to a worker.
    num_fitting = sum(
        min(int(node.get(kind, 0.0) // amount) for kind, amount in worker.items()) for node in nodes
    )
    if num_fitting < least:
        needs = " and ".join(
            f"{least} x {counted(amount, kind)}" for kind, amount in worker.items()
        )
        have = "; ".join(
            ", ".join(counted(node.get(kind, 0.0), kind) for kind in worker) for node in nodes
        )
        have = have or "none that stays"
        raise UserError(
            f"num_workers ({least}) needs {needs}, but the nodes of Ray have {have}: "
            f"room for {num_fitting}"
        )
    return worker


def least_bundles(config: PretrainConfig) -> list[dict[str, float]]:
    """Returns what the least number of workers needs, each on one node."""
    worker = _one_worker(config, config.cpus_per_worker or 1.0)
    return [worker] * config.worker_range[0]


def _one_worker(config: PretrainConfig, cpus: float) -> dict[str, float]:
    return {"CPU": cpus} | ({"GPU": 1.0} if config.use_gpu else {})


def _cpu_share(nodes: Sequence[Mapping[str, float]], num_workers: int) -> float:
    """Returns the largest number of CPUs that each of `num_workers` can have, at least 1."""
    cpus = [int(node.get("CPU", 0.0)) for node in nodes]
    fitting = (
        share
        for share in range(max(cpus, default=1), 1, -1)
        if sum(have // share for have in cpus) >= num_workers
    )
    return float(next(fitting, 1))

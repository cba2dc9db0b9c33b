"""Notices that a node is about to leave, as `ray drain-node` gives them."""

import time

from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import DrainNodeReason


def drain(cluster, node_id: str, seconds: float) -> None:
    """Tells a cluster that a node will be taken away in so many seconds."""
    accepted, why_not = GcsClient(address=cluster.address).drain_node(
        node_id,
        DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "spot",
        int(1000 * (time.time() + seconds)),
    )
    assert accepted, why_not

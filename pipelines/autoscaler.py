"""What the autoscaler of the connected Ray may grow its cluster to.

`ray_jobs.submit` sends this module as text to clusters without XKD, so it imports nothing of it.
"""

import json
from typing import Any


def autoscaler_limits() -> dict[str, float] | None:
    """Returns the most of each resource that an autoscaler may bring.

    Returns:
        None without an autoscaler. Empty if it does not say, as the first version of Ray's
        autoscaler (`ray start --autoscaling-config`, KubeRay's default before its version 2).
    """
    import ray
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    limits = ray._private.state.state.get_max_resources_from_cluster_config()
    if limits:
        return dict(limits)
    status = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    report: dict[str, Any] = (json.loads(status) if status else {}).get("autoscaler_report") or {}
    kinds: dict[str, str] = report.get("node_type_mapping") or {}
    # Without an autoscaler, Ray reports each node as of a kind of its own.
    return {} if any(kind != f"node_{node}" for node, kind in kinds.items()) else None

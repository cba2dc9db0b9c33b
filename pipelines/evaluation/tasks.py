"""Ray tasks of an evaluation: their results, and memory that nodes have."""

from typing import Any

import ray

from pipelines.errors import UserError
from pipelines.nodes import working_nodes


def result_of(reference: Any) -> Any:
    """Waits for a task.

    Raises:
        UserError: What the task raised, without Ray's traceback.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def within_a_node(size: float) -> int:
    """Returns a task's memory in bytes for Ray: at most that of the largest node.

    A task that asks for more than any node has would never start.
    """
    return int(min(size, max(node["Resources"].get("memory", 0) for node in working_nodes())))


def all_cpus() -> int:
    """Returns the CPUs of the largest node: a task runs on one node."""
    return max(1, int(max(node["Resources"].get("CPU", 1) for node in working_nodes())))

"""Notices that a worker's node is about to leave: `ray drain-node`, spot machines, scaling down.

Ray Train learns of a drain within seconds. All workers look at the same step, because the call is
collective, and none of them may look more often than the others:

    rank 0   | step 5, time to look | step 6 -> all look | save, stop
    rank 1   | step 5               | step 6 -> all look | save, stop
"""

import time

from ray import train

LOOK_SECONDS = 3.0
"""Time between two looks, each of which takes some milliseconds."""


class DrainWatch:
    """Says when to look for notices, and looks.

    Args:
        rank: Rank of the worker; rank 0 keeps the time.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._look_at = time.monotonic() + LOOK_SECONDS

    def is_due(self) -> bool:
        """Whether this worker wants all of them to look."""
        return self._rank == 0 and time.monotonic() >= self._look_at

    def look(self) -> tuple[str, ...]:
        """Returns the IDs of workers' nodes that are about to leave. All workers must call it."""
        self._look_at = time.monotonic() + LOOK_SECONDS
        info = train.get_preemption_info()
        return tuple(info.preempted_node_ids) if info is not None else ()

"""Reasons to stop a training early, and how workers learn about them.

A stop leaves a checkpoint of the last completed step. It is caused by SIGTERM at a worker, by the
driver (Ctrl-C or SIGTERM), by `max_seconds`, or by a notice that a node is about to leave
(`DrainWatch`). `Agreement` makes all workers stop at one step.
"""

import signal
import threading
import time
from dataclasses import dataclass
from enum import IntEnum
from types import FrameType
from typing import Any

import ray
from ray import train
from ray.train.torch import TorchConfig

_ASK_SECONDS = 0.5
"""Time between two requests to the driver."""

LOOK_SECONDS = 3.0
"""Time between two looks for drained nodes, each of which takes some milliseconds."""

_TERMINATED = threading.Event()


class Stop(IntEnum):
    """Reason to stop; of several reasons the largest counts."""

    NO = 0
    DRAINED = 1
    """A worker's node is about to leave; the training may continue on others."""
    TIME_IS_UP = 2
    ASKED = 3
    """The driver asked for it."""
    TERMINATED = 4
    """A worker received SIGTERM, for example because its machine is preempted."""


class StopSignal:
    """Reasons to stop that one worker knows; never blocks."""

    def __init__(self, board: Any = None, deadline: float | None = None) -> None:
        self._board = board
        self._deadline = deadline
        self._answer: Any = None
        self._ask_at = 0.0
        self._asked = False

    def now(self) -> Stop:
        """Returns the reason to stop, or `Stop.NO`."""
        if _TERMINATED.is_set():
            return Stop.TERMINATED
        if self._driver_wants_it():
            return Stop.ASKED
        if self._deadline is not None and time.time() >= self._deadline:
            return Stop.TIME_IS_UP
        return Stop.NO

    def _driver_wants_it(self) -> bool:
        if self._asked or self._board is None:
            return self._asked
        if self._answer is None:
            if time.monotonic() >= self._ask_at:
                self._answer = self._board.stop_asked.remote()
                self._ask_at = time.monotonic() + _ASK_SECONDS
        elif ray.wait([self._answer], timeout=0)[0]:
            try:
                self._asked = ray.get(self._answer)
            except ray.exceptions.RayError:
                self._board = None  # lost with its node: the driver cannot be reached any more
            self._answer = None
        return self._asked


class DrainWatch:
    """Looks for notices that a worker's node is about to leave: `ray drain-node`, spot machines.

    Ray Train learns of them within seconds. The call is collective, so all workers look at the same
    step, which `Agreement` settles:

        rank 0   | step 5, time to look | step 6 -> all look | save, stop
        rank 1   | step 5               | step 6 -> all look | save, stop

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


@dataclass
class StoppableTorchConfig(TorchConfig):
    """Ray Train's setup of PyTorch; in addition, SIGTERM asks workers to stop."""

    @property
    def backend_cls(self) -> Any:
        """The backend that sets up the workers."""
        return _StoppableBackend


class _StoppableBackend(TorchConfig().backend_cls):  # type: ignore[misc]  # Ray's is private
    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_training_start(worker_group, backend_config)
        # Signal handlers can only be set in the main thread; training runs in another one.
        worker_group.execute(_stop_on_sigterm)


def _stop_on_sigterm() -> None:
    """Makes SIGTERM ask this process to stop."""
    _TERMINATED.clear()
    signal.signal(signal.SIGTERM, _terminated)


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    _TERMINATED.set()

"""Progress reports from stages to the driver.

A stage calls `OnProgress`. A Ray worker posts to a `board`, an actor that reserves no CPU. In the
driver, `watched_board` forwards the latest post and logs warnings. A worker asks the board whether
the driver wants it to stop.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

logger = logging.getLogger(__name__)

OnProgress = Callable[[float, float, str], None]
"""A callback that takes the amount done, the total, and a note."""

_POLL_SECONDS = 0.5


@ray.remote(num_cpus=0)
class _Board:
    def __init__(self) -> None:
        self._latest: tuple[float, float, str] | None = None
        self._warnings: list[str] = []
        self._stop = False
        self._has_begun = False

    def post(self, done: float, total: float, note: str) -> None:
        self._latest = (done, total, note)

    def begin(self, step: int) -> None:
        if self._has_begun:
            self._warnings.append(f"the workers have restarted; they continue at step {step:,}")
        self._has_begun = True

    def warn(self, text: str) -> None:
        self._warnings.append(text)

    def news(self) -> tuple[tuple[float, float, str] | None, list[str]]:
        warnings, self._warnings = self._warnings, []
        return self._latest, warnings

    def ask_to_stop(self) -> None:
        self._stop = True

    def stop_asked(self) -> bool:
        return self._stop


def poster(board: Any) -> OnProgress:
    """Returns a callback that posts to a board without waiting."""
    return lambda done, total, note: board.post.remote(done, total, note)


@contextmanager
def watched_board(on_progress: OnProgress) -> Iterator[Any]:
    """Yields a board whose posts reach `on_progress` in this process while the block runs."""
    # The board runs on the driver's node, so that it lives as long as its reader. Not softly:
    # Ray then puts an actor without CPUs on any node.
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = _Board.options(scheduling_strategy=node).remote()  # type: ignore[attr-defined]  # Ray's
    finished = threading.Event()

    def pass_on() -> None:
        seen = None
        is_last = False
        while not is_last:
            is_last = finished.wait(_POLL_SECONDS)
            try:
                latest, warnings = ray.get(board.news.remote(), timeout=10)
            except (ray.exceptions.RayError, TimeoutError):
                continue  # a busy or dying cluster may delay progress but must not fail the work
            for text in warnings:
                logger.warning("%s", text)
            if latest is not None and latest != seen:
                seen = latest
                on_progress(*latest)

    thread = threading.Thread(target=pass_on, daemon=True, name="progress")
    thread.start()
    try:
        yield board
    finally:
        finished.set()
        thread.join(timeout=15)
        ray.kill(board)


def ignore_progress(_done: float, _total: float, _note: str) -> None:
    """Discards progress."""

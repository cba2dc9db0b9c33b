"""How a stage says how far it is, from wherever it runs.

A stage calls `OnProgress`. Work inside a Ray worker posts to a `board`, an actor that takes no
CPU, and `watched_board` in the driver passes on what was posted last and logs warnings. A worker
asks the board whether the driver wants it to stop.
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
"""Called with what is done, what there is in all, and a note."""

_POLL_SECONDS = 0.5


@ray.remote(num_cpus=0)
class _Board:
    def __init__(self) -> None:
        self._latest: tuple[float, float, str] | None = None
        self._warnings: list[str] = []
        self._stop = False

    def post(self, done: float, total: float, note: str) -> None:
        self._latest = (done, total, note)

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
    """What a worker calls; never waits."""
    return lambda done, total, note: board.post.remote(done, total, note)


@contextmanager
def watched_board(on_progress: OnProgress) -> Iterator[Any]:
    """Yields a board whose news reach `on_progress` in this process while the block runs."""
    # Beside the driver, where it lives as long as somebody reads it.
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
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
                continue  # a busy or dying cluster: progress may pause, work is not disturbed
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
    """Where progress goes that nobody follows."""

"""How a stage says how far it is, from wherever it runs.

A stage calls `OnProgress`. Work inside a Ray worker posts to a `board`, an actor that takes no
CPU, and `watch` in the driver passes on what was posted last.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

OnProgress = Callable[[float, float, str], None]
"""Called with what is done, what there is in all, and a note."""

POLL_SECONDS = 0.5


@ray.remote(num_cpus=0)
class _Board:
    def __init__(self) -> None:
        self._latest: tuple[float, float, str] | None = None

    def post(self, done: float, total: float, note: str) -> None:
        self._latest = (done, total, note)

    def latest(self) -> tuple[float, float, str] | None:
        return self._latest


def poster(board: Any) -> OnProgress:
    """What a worker calls; never waits."""
    return lambda done, total, note: board.post.remote(done, total, note)


@contextmanager
def watched_board(on_progress: OnProgress) -> Iterator[Any]:
    """Yields a board whose news reach `on_progress` in this process while the block runs."""
    board = _Board.remote()  # type: ignore[attr-defined]  # Ray adds `remote`
    finished = threading.Event()

    def pass_on() -> None:
        seen = None
        while not finished.wait(POLL_SECONDS):
            try:
                latest = ray.get(board.latest.remote(), timeout=10)
            except (ray.exceptions.RayError, TimeoutError):
                continue  # a busy or dying cluster: progress may pause, work is not disturbed
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

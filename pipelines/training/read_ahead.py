"""What a feed gives, the memory that it is in, and a thread that has it ready in time."""

import math
import queue
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xkd_core.views.views import ClipBatch

READ_AHEAD_BATCHES = 2
"""Batches that are ready before they are asked for."""


@dataclass(frozen=True)
class FeedBatch:
    """One worker's slice of a global batch."""

    clips: ClipBatch
    clip_ids: list[str]
    """Of the first segment of each source, whichever window of it was taken."""
    epochs: list[int]
    """A batch may begin in one epoch and end in the next."""


class ArrayPool:
    """Arrays in memory that is used again when nothing refers to the array before any more.

    New memory costs more than what is written to it: the system clears every page of it first.
    """

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def take(self, shape: tuple[int, ...], dtype: type[Any]) -> NDArray[Any]:
        """Gives an array with anything in it."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        memory = self._free.pop() if self._free else None
        if memory is None or len(memory) < num_bytes:
            memory = np.empty(num_bytes, np.uint8)
        array = memory[:num_bytes].view(dtype).reshape(shape)
        # A tensor made of the array, and any view of it, keeps this very object.
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array


class ReadAhead(Iterator[FeedBatch]):
    """Runs an iterator in a thread of its own, some items ahead."""

    def __init__(self, batches: Iterator[FeedBatch]) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(READ_AHEAD_BATCHES)
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._fill, args=(batches,), daemon=True, name="feed"
        )
        self._thread.start()

    def __next__(self) -> FeedBatch:
        while not self._closed.is_set():
            try:
                item = self._queue.get(timeout=1.0)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                self.close()
                raise item
            batch: FeedBatch = item
            return batch
        raise StopIteration

    def close(self) -> None:
        """Ends the thread; what it has ready is lost."""
        self._closed.set()

    def _fill(self, batches: Iterator[FeedBatch]) -> None:
        try:
            for batch in batches:
                if not self._put(batch):
                    return
        except Exception as error:  # raised again where the batch is asked for
            self._put(error)

    def _put(self, item: object) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

"""Decodes what a registered encoder is given, in confined processes where the host allows it.

Each call of the model has a decoder of its own: inputs of different callers never meet in one.
"""

import io
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.media.decode import decode_segments
from pipelines.media.segments import Segment
from pipelines.redaction import one_line

if TYPE_CHECKING:
    from pipelines.media.decoder.process import DecoderProcess

logger = logging.getLogger(__name__)

MAX_MEMORY_BYTES = 4_000_000_000
TIMEOUT_SECONDS = 600.0


class Decode(Protocol):
    """Gives the segments of a path or of the bytes of a file."""

    def __call__(self, source: str | bytes, **settings: Any) -> Iterator[Segment]:
        """As `decode_segments`."""


class InputDecoder:
    """Processes that decode, as many as there are calls at a time."""

    def __init__(self) -> None:
        self._idle: list[DecoderProcess] = []
        self._lock = threading.Lock()
        self._is_possible: bool | None = None

    @contextmanager
    def lent(self) -> Iterator[Decode]:
        """What decodes the inputs of one call."""
        with self._lock:
            process = self._idle.pop() if self._idle else None
        if process is None and self._is_possible is not False:
            process = self._started()
        if process is None:
            yield _decode_here
            return
        try:
            yield process.segments
        finally:
            process.renew()
            with self._lock:
                self._idle.append(process)

    def _started(self) -> "DecoderProcess | None":
        """A new process, or None where none can be had, which is said once."""
        try:
            # Here, because other systems lack what it imports.
            from pipelines.media.decoder.process import DecoderProcess

            process = DecoderProcess(
                max_memory_bytes=MAX_MEMORY_BYTES, timeout_seconds=TIMEOUT_SECONDS
            )
            found = process.start()
        except (ImportError, OSError) as error:
            if self._is_possible is None:
                logger.warning(
                    "media are decoded in this process (%s): a hostile file could do what it can",
                    one_line(error),
                )
            self._is_possible = False
            return None
        if self._is_possible is None and not found.is_full:
            logger.warning("the process that decodes media is %s", found)
        self._is_possible = True
        return process


def _decode_here(source: str | bytes, **settings: Any) -> Iterator[Segment]:
    if isinstance(source, str):
        yield from decode_segments(source, **settings)
        return
    yield from decode_segments(io.BytesIO(source), **settings)

"""The parent's side of one forked decoder: requests, answers, and their deadlines."""

import contextlib
import json
import os
import socket
import time
from dataclasses import dataclass
from typing import Any

from pipelines.media.container import DecodeError, MediaInfo
from pipelines.media.decoder.messages import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    TAKEN,
    Expectation,
    failure,
    record,
    send,
)
from pipelines.media.decoder.shared_memory import SharedMemory
from pipelines.media.segments import ClockRepairs, Segment

_PROCESS_CPU_CLOCK = 2
"""With a process, what Linux calls the clock of its CPU time (`man 3 clock_getcpuclockid`)."""


BYTES_PER_SECOND = 1_000
"""Fewer bytes than any codec needs for a picture that moves or a sound."""


class DeadDecoderError(Exception):
    """A decoder closed its end."""


@dataclass(frozen=True)
class Patience:
    """How long a decoder may take."""

    seconds: float
    """For each answer, and for a whole file beside what `per_second` gives it."""
    per_second: float
    """For each second of the source."""

    def check(self, taken_seconds: float, claimed_seconds: float, num_bytes: int) -> None:
        """Gives up a decoder that answers in time, but for too long.

        How long a source is, the decoder says, and may lie. How many bytes it has, it cannot: so a
        second counts only where there are `BYTES_PER_SECOND` for it. Sources with less hold still
        pictures or silence, which take a small part of what is allowed.

        Args:
            taken_seconds: What the decoder has worked.
            claimed_seconds: Of the segments that it gave.
            num_bytes: Of the file.

        Raises:
            DecodeError: If it is.
        """
        source_seconds = min(claimed_seconds, num_bytes / BYTES_PER_SECOND)
        if taken_seconds > self.seconds + self.per_second * source_seconds:
            raise DecodeError(
                "decoder_timeout",
                f"{source_seconds:.0f} s took {taken_seconds:.0f} s, limits.max_decode_seconds "
                f"({self.seconds:g}) and limits.max_decode_ratio ({self.per_second:g})",
            )


class ForkedDecoder:
    """One forked decoder, and the memory that it writes into."""

    def __init__(
        self, process: int, channel: socket.socket, memory: SharedMemory, patience: Patience
    ) -> None:
        self.process = process
        self.memory = memory
        self._channel = channel
        self._patience = patience
        self._waited = 0.0
        self._num_bytes = 0

    def request(self, file: int, settings: dict[str, Any]) -> None:
        """Hands a file over.

        Raises:
            OSError: If the decoder is gone.
        """
        self._num_bytes = os.fstat(file).st_size
        self._channel.settimeout(_SEND_SECONDS)
        send(self._channel, {"settings": settings}, file)

    def answer(self, expectation: Expectation) -> Segment | DecodeError | None:
        """The next segment, why there is none, or None if that was all.

        Raises:
            DecodeError: If nothing comes in time.
            DeadDecoderError: If nothing will come.
            ValueError, LookupError, TypeError, ArithmeticError, RecursionError: If it is nonsense.
        """
        began = time.monotonic()
        deadline = began + self._patience.seconds
        length = int.from_bytes(self._read(LENGTH_BYTES, deadline), "big")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        data = self._read(length, deadline)
        self._waited += time.monotonic() - began
        header = json.loads(data)
        if not isinstance(header, dict):
            raise TypeError("a header that is no object")
        if "error" in header:
            return failure(header)
        if "end" in header:
            return None
        segment = self._segment(header, expectation)
        # What the parent does with segments is not its fault; what it works meanwhile is.
        worked = max(self._waited, self._cpu_seconds())
        self._patience.check(worked, expectation.seconds, self._num_bytes)
        return segment

    def close(self) -> None:
        """Lets go of it; it may live on."""
        self._channel.close()

    def _segment(self, header: dict[str, Any], expectation: Expectation) -> Segment:
        expectation.check(header)
        info = record(MediaInfo, header["info"])
        repairs = record(ClockRepairs, header["repairs"])
        frames, waveform = self.memory.arrays(header["frames"], header["samples"])
        # Copied before anything looks at them, for the decoder can still write.
        frames = None if frames is None else frames.copy()
        waveform = None if waveform is None else waveform.copy()
        with contextlib.suppress(OSError):  # the next answer says that it died
            self._channel.sendall(TAKEN)
        start, seconds = float(header["start_seconds"]), float(header["duration_seconds"])
        errors: int = header["decode_errors"]
        return Segment(start, seconds, frames, waveform, errors, info, repairs)

    def _read(self, num_bytes: int, deadline: float) -> bytearray:
        data = bytearray(num_bytes)
        at, view = 0, memoryview(data)
        try:
            while at < num_bytes:
                self._channel.settimeout(max(0.001, deadline - time.monotonic()))
                count = self._channel.recv_into(view[at:])
                if not count:
                    raise DeadDecoderError
                at += count
        except TimeoutError as error:
            raise DecodeError(
                "decoder_timeout",
                f"nothing for limits.max_decode_seconds ({self._patience.seconds:g})",
            ) from error
        except OSError as error:
            raise DeadDecoderError from error
        return data

    def _cpu_seconds(self) -> float:
        """What it has worked, as the kernel says, not itself."""
        try:
            return time.clock_gettime((~self.process << 3) | _PROCESS_CPU_CLOCK)
        except OSError:  # no Linux, or it has ended
            return 0.0


_SEND_SECONDS = 10.0

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
"""Combined with a process ID, the ID of its CPU clock on Linux (`man 3 clock_getcpuclockid`)."""


BYTES_PER_SECOND = 1_000
"""Less than any codec needs for a moving picture or sound."""


class DeadDecoderError(Exception):
    """Raised if a decoder closed its end of the socket."""


@dataclass(frozen=True)
class Patience:
    """Time limits of a decoder, in seconds."""

    seconds: float
    """Limit for each answer, and the fixed part of the limit for a whole file."""
    per_second: float
    """Limit for a whole file per second of the source."""

    def check(self, taken_seconds: float, claimed_seconds: float, num_bytes: int) -> None:
        """Checks the limit for the whole file, which every single answer may keep.

        A hostile decoder can claim any length, but not any size of the file, so at most one second
        counts for `BYTES_PER_SECOND`. Real sources with fewer bytes hold still pictures or silence,
        which decode in a small part of the limit.

        Args:
            taken_seconds: Wall or CPU time so far.
            claimed_seconds: Total length of the segments so far, as the decoder claims.
            num_bytes: Size of the file.

        Raises:
            DecodeError: If the decoder took longer.
        """
        source_seconds = min(claimed_seconds, num_bytes / BYTES_PER_SECOND)
        if taken_seconds > self.seconds + self.per_second * source_seconds:
            raise DecodeError(
                "decoder_timeout",
                f"{source_seconds:.0f} s took {taken_seconds:.0f} s, limits.max_decode_seconds "
                f"({self.seconds:g}) and limits.max_decode_ratio ({self.per_second:g})",
            )


class ForkedDecoder:
    """One forked decoder and the memory that it writes to."""

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
        """Sends a file to decode.

        Raises:
            OSError: If the decoder died.
        """
        self._num_bytes = os.fstat(file).st_size
        self._channel.settimeout(_SEND_SECONDS)
        send(self._channel, {"settings": settings}, file)

    def answer(self, expectation: Expectation) -> Segment | DecodeError | None:
        """Returns the next segment, the reason why there is none, or None at the end.

        Raises:
            DecodeError: If the answer takes too long.
            DeadDecoderError: If the decoder died.
            ValueError, LookupError, TypeError, ArithmeticError, RecursionError: If the answer is
                invalid.
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
        # The parent's time between segments does not count; the decoder's CPU time does.
        worked = max(self._waited, self._cpu_seconds())
        self._patience.check(worked, expectation.seconds, self._num_bytes)
        return segment

    def close(self) -> None:
        """Closes the connection; the decoder may live on."""
        self._channel.close()

    def _segment(self, header: dict[str, Any], expectation: Expectation) -> Segment:
        expectation.check(header)
        info = record(MediaInfo, header["info"])
        repairs = record(ClockRepairs, header["repairs"])
        frames, waveform = self.memory.arrays(header["frames"], header["samples"])
        # Copied first, because the decoder can still write.
        frames = None if frames is None else frames.copy()
        waveform = None if waveform is None else waveform.copy()
        with contextlib.suppress(OSError):  # the next answer reports that it died
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
        """Returns its CPU time as measured by the kernel."""
        try:
            return time.clock_gettime((~self.process << 3) | _PROCESS_CPU_CLOCK)
        except OSError:  # not Linux, or the process ended
            return 0.0


_SEND_SECONDS = 10.0

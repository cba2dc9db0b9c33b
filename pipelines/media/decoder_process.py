"""Decoding in a process of its own, so that a file which kills or hangs FFmpeg costs one file.

`DecoderProcess` is the parent's side; `python -m pipelines.media.decoder_process` is the child, one
for each parent, used for file after file. A request is a line of JSON, an answer a length and a
header of JSON. The frames and samples of a segment lie in memory that both share, because a pipe
takes a tenth of the CPU of an ingest (measured); an empty line says that the parent has taken them
out. Nothing that a file could influence is ever unpickled.
"""

import contextlib
import fcntl
import json
import math
import mmap
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipelines.media.container import DecodeError, MediaInfo
from pipelines.media.decode import Segment, decode_segments
from pipelines.paths import PACKAGES
from pipelines.redaction import one_line

_MODULE = "pipelines.media.decoder_process" if __spec__ is None else __spec__.name
"""This module by the name that it has where it runs."""

OUTSIDE_REASONS = frozenset({"decoder_crashed", "out_of_memory"})
"""Failures that need not lie in the file: something else may have killed the process, or filled it
before. Each file gets a second chance in a new one."""
_SPOILING_REASONS = frozenset({"undecodable", "out_of_memory"})
"""Failures after which FFmpeg may not have given back all that it had."""
_LENGTH_BYTES = 4
_MAX_HEADER_BYTES = 1_000_000
_TAKEN = b"\n"
_NONSENSE = (ValueError, LookupError, TypeError, ArithmeticError, OSError, MemoryError)
"""What reading an answer can come to if a file has got hold of the child."""


class _SharedMemory:
    """Memory for one segment, frames and then samples; it grows and never shrinks."""

    def __init__(self, file: int) -> None:
        self.file = file
        self._map: mmap.mmap | None = None

    @classmethod
    def new(cls) -> "_SharedMemory":
        """Memory without a name, which ends with its last user."""
        if not hasattr(os, "memfd_create"):  # no Linux
            with tempfile.TemporaryFile() as file:
                return cls(os.dup(file.fileno()))
        memory = cls(os.memfd_create("segment", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        # A child in the hands of a file could else take from the parent what it reads.
        fcntl.fcntl(memory.file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return memory

    def reserve(self, num_bytes: int) -> None:
        """Makes room, which only the child does.

        Raises:
            DecodeError: If there is none.
        """
        if os.fstat(self.file).st_size >= num_bytes:
            return
        try:
            os.ftruncate(self.file, num_bytes)
            self._map = mmap.mmap(self.file, num_bytes)
        except OSError as error:
            raise DecodeError("out_of_memory", f"a segment of {num_bytes} bytes") from error

    def arrays(
        self, shape: Sequence[int] | None, num_samples: int
    ) -> tuple[NDArray[np.uint8] | None, NDArray[np.int16] | None]:
        """The frames and the samples that are in it.

        Raises:
            ValueError: If it is smaller, or sizes are none.
        """
        if num_samples < 0 or (shape is not None and min(shape) < 1):
            raise ValueError(f"a segment of {shape} pixels and {num_samples} samples")
        num_pixels = math.prod(shape) if shape else 0
        num_bytes = num_pixels + 2 * num_samples
        if not num_bytes:
            return None, None
        if self._map is None or len(self._map) < num_bytes:
            if os.fstat(self.file).st_size < num_bytes:
                raise ValueError(f"a segment of {num_bytes} bytes that are not there")
            self._map = mmap.mmap(self.file, num_bytes)
        data = np.frombuffer(self._map, np.uint8, num_bytes)
        return (
            data[:num_pixels].reshape(shape) if shape else None,
            # Behind an odd number of pixels they are not aligned, which NumPy takes.
            data[num_pixels:].view(np.int16) if num_samples else None,
        )

    def close(self) -> None:
        """Lets go of it."""
        self._map = None
        os.close(self.file)


class DecoderProcess:
    """A child that decodes; it starts with the first file and again after it died."""

    def __init__(self, *, max_memory_bytes: int, timeout_seconds: float) -> None:
        self._max_memory_bytes = max_memory_bytes
        self._timeout_seconds = timeout_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._memory: _SharedMemory | None = None
        self._selector = selectors.DefaultSelector()

    def segments(self, path: str, **settings: float) -> Iterator[Segment]:
        """Gives what `media.decode_segments` gives, decoded in the child.

        Raises:
            DecodeError: As there, and if the child dies or stays silent for too long.
        """
        whole = False
        try:
            self._request({"path": path, "settings": settings})
            while True:
                answer = self._sensible_answer()
                if isinstance(answer, DecodeError):
                    whole = answer.reason not in _SPOILING_REASONS
                    raise answer
                if answer is None:
                    whole = True
                    return
                yield answer
        finally:
            if not whole:
                self.close()

    def close(self) -> None:
        """Ends the child."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        assert child.stdout is not None
        self._selector.unregister(child.stdout)
        child.kill()
        child.wait()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        child.stdout.close()
        assert self._memory is not None
        self._memory.close()

    def _request(self, request: dict[str, Any]) -> None:
        line = json.dumps(request).encode() + b"\n"
        for _ in range(2):
            if self._child is None:
                self._child = self._start()
            assert self._child.stdin is not None
            try:
                self._child.stdin.write(line)
                self._child.stdin.flush()
                return
            except BrokenPipeError:  # it died between two files: not the fault of this one
                self.close()
        raise DecodeError("decoder_crashed", "the decoder does not start")

    def _start(self) -> subprocess.Popen[bytes]:
        packages = str(PACKAGES)
        paths = [packages, *filter(None, [os.environ.get("PYTHONPATH")])]
        memory = _SharedMemory.new()
        # Without -P modules of the folder that the job runs in would come first.
        module = ["-P", "-m", _MODULE]
        try:
            child = subprocess.Popen(
                [sys.executable, *module, str(self._max_memory_bytes), str(memory.file)],
                pass_fds=[memory.file],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                bufsize=0,
            )
        except BaseException:
            memory.close()
            raise
        self._memory = memory
        assert child.stdout is not None
        self._selector.register(child.stdout, selectors.EVENT_READ)
        return child

    def _sensible_answer(self) -> Segment | DecodeError | None:
        """The next segment, why there is none, or None if that was all.

        Raises:
            DecodeError: If what the child says is nonsense, dead or late.
        """
        try:
            return self._answer()
        except _NONSENSE as error:
            raise DecodeError(
                "decoder_crashed", f"it talked nonsense: {one_line(error)}"
            ) from error

    def _answer(self) -> Segment | DecodeError | None:
        deadline = time.monotonic() + self._timeout_seconds
        length = int.from_bytes(self._read(_LENGTH_BYTES, deadline), "big")
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(self._read(length, deadline))
        if "error" in header:
            return DecodeError(header["error"], header["message"])
        return None if "end" in header else self._segment(header)

    def _segment(self, header: dict[str, Any]) -> Segment:
        assert self._child is not None
        assert self._child.stdin is not None
        assert self._memory is not None
        frames, waveform = self._memory.arrays(header["frames"], header["samples"])
        frames = None if frames is None else frames.copy()
        waveform = None if waveform is None else waveform.copy()
        with contextlib.suppress(BrokenPipeError):  # the next answer says that it died
            self._child.stdin.write(_TAKEN)
        start, seconds = header["start_seconds"], header["duration_seconds"]
        info = MediaInfo(**header["info"])
        return Segment(start, seconds, frames, waveform, header["decode_errors"], info)

    def _read(self, num_bytes: int, deadline: float) -> bytearray:
        assert self._child is not None
        assert self._child.stdout is not None
        pipe = self._child.stdout.fileno()
        data = bytearray(num_bytes)
        at, view = 0, memoryview(data)
        while at < num_bytes:
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                raise DecodeError(
                    "decoder_timeout",
                    f"nothing for limits.max_decode_seconds ({self._timeout_seconds:g})",
                )
            count = os.readv(pipe, [view[at:]])
            if not count:
                raise DecodeError("decoder_crashed", _cause(self._child, deadline))
            at += count
        return data


def _cause(child: subprocess.Popen[bytes], deadline: float) -> str:
    """How a child ended that says nothing more."""
    try:
        returncode = child.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "the decoder closed its side and went on"
    if returncode >= 0:
        return f"the decoder exited with code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"the decoder died of {name}"


def _serve(requests: BinaryIO, answers: BinaryIO, memory: _SharedMemory) -> None:
    while line := requests.readline():
        request = json.loads(line)
        is_free = True
        try:
            for segment in decode_segments(request["path"], **request["settings"]):
                if not is_free and requests.readline() != _TAKEN:
                    return
                _send(answers, segment, memory)
                is_free = False
            _send_header(answers, {"end": True})
        except DecodeError as error:
            _send_header(answers, {"error": error.reason, "message": error.message})
        except BrokenPipeError:
            return
        except Exception as error:  # one file must not end the run, whatever PyAV raises
            message = f"{type(error).__name__}: {one_line(error)}"
            _send_header(answers, {"error": "undecodable", "message": message})
        if not is_free and requests.readline() != _TAKEN:
            return


def _send(answers: BinaryIO, segment: Segment, memory: _SharedMemory) -> None:
    frames, waveform = segment.frames, segment.waveform
    shape = None if frames is None else frames.shape
    num_samples = 0 if waveform is None else len(waveform)
    memory.reserve((0 if frames is None else frames.nbytes) + 2 * num_samples)
    for target, array in zip(memory.arrays(shape, num_samples), (frames, waveform), strict=True):
        if target is not None and array is not None:
            target[...] = array
    header = {
        "start_seconds": segment.start_seconds,
        "duration_seconds": segment.duration_seconds,
        "frames": shape,
        "samples": num_samples,
        "decode_errors": segment.decode_errors,
        "info": asdict(segment.info),
    }
    _send_header(answers, header)


def _send_header(answers: BinaryIO, header: dict[str, Any]) -> None:
    data = json.dumps(header).encode()
    answers.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
    answers.flush()


def _limit_memory(max_bytes: int) -> None:
    """Allows so much address space beyond what the idle decoder has."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    if statm.exists():
        idle = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (idle + max_bytes, idle + max_bytes))


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    """Serves the parent until it closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    # FFmpeg's libraries print; what they print must not get into the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _limit_memory(int(sys.argv[1]))
    _serve(sys.stdin.buffer, answers, _SharedMemory(int(sys.argv[2])))


if __name__ == "__main__":
    main()

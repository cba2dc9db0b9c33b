"""Decoding in a process of its own, so that a file which kills or hangs FFmpeg costs one file.

`DecoderProcess` is the parent's side; `python -m pipelines.decoder_process` is the child, one for
each parent, used for file after file. A request is a line of JSON; an answer is a length, a header
of JSON and raw bytes. Nothing that a file could influence is ever unpickled.
"""

import contextlib
import fcntl
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipelines.media import DecodeError, MediaInfo, Segment, decode_segments, one_line

OUTSIDE_REASONS = frozenset({"decoder_crashed", "out_of_memory"})
"""Failures that need not lie in the file: something else may have killed the process, or filled it
before. Each file gets a second chance in a new one."""
_SPOILING_REASONS = frozenset({"undecodable", "out_of_memory"})
"""Failures after which FFmpeg may not have given back all that it had."""
_LENGTH_BYTES = 4
_PIPE_BYTES = 1 << 20
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ of Linux


class DecoderProcess:
    """A child that decodes; it starts with the first file and again after it died."""

    def __init__(self, *, max_memory_bytes: int, timeout_seconds: float) -> None:
        self._max_memory_bytes = max_memory_bytes
        self._timeout_seconds = timeout_seconds
        self._child: subprocess.Popen[bytes] | None = None
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
                header = self._answer()
                if "error" in header:
                    whole = header["error"] not in _SPOILING_REASONS
                    raise DecodeError(header["error"], header["message"])
                if "end" in header:
                    whole = True
                    return
                yield self._segment(header)
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
        packages = str(Path(__file__).resolve().parents[1])
        paths = [packages, *filter(None, [os.environ.get("PYTHONPATH")])]
        child = subprocess.Popen(
            [sys.executable, "-m", "pipelines.decoder_process", str(self._max_memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            bufsize=0,
        )
        assert child.stdout is not None
        with contextlib.suppress(OSError):  # larger than the system allows, or no Linux
            fcntl.fcntl(child.stdout, _SET_PIPE_SIZE, _PIPE_BYTES)
        self._selector.register(child.stdout, selectors.EVENT_READ)
        return child

    def _answer(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout_seconds
        length = int.from_bytes(self._read(_LENGTH_BYTES, deadline), "big")
        header: dict[str, Any] = json.loads(self._read(length, deadline))
        header["deadline"] = deadline
        return header

    def _segment(self, header: dict[str, Any]) -> Segment:
        deadline = header["deadline"]
        frames = waveform = None
        if header["frames"]:
            data = self._read(int(np.prod(header["frames"])), deadline)
            frames = np.frombuffer(data, np.uint8).reshape(header["frames"])
        if header["samples"]:
            data = self._read(2 * header["samples"], deadline)
            waveform = np.frombuffer(data, np.int16)
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
                raise DecodeError("decoder_crashed", _cause(self._child.wait()))
            at += count
        return data


def _cause(returncode: int) -> str:
    if returncode >= 0:
        return f"the decoder exited with code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"the decoder died of {name}"


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    for line in requests:
        request = json.loads(line)
        try:
            for segment in decode_segments(request["path"], **request["settings"]):
                _send(answers, segment)
            _send_header(answers, {"end": True})
        except DecodeError as error:
            _send_header(answers, {"error": error.reason, "message": error.message})
        except BrokenPipeError:
            return
        except Exception as error:  # one file must not end the run, whatever PyAV raises
            message = f"{type(error).__name__}: {one_line(error)}"
            _send_header(answers, {"error": "undecodable", "message": message})


def _send(answers: BinaryIO, segment: Segment) -> None:
    frames, waveform = segment.frames, segment.waveform
    header = {
        "start_seconds": segment.start_seconds,
        "duration_seconds": segment.duration_seconds,
        "frames": None if frames is None else frames.shape,
        "samples": 0 if waveform is None else len(waveform),
        "decode_errors": segment.decode_errors,
        "info": asdict(segment.info),
    }
    _send_header(answers, header)
    for array in (frames, waveform):
        if array is not None:
            answers.write(array.data.cast("B"))
    answers.flush()


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
    _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()

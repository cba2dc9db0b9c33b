"""The parent's handle of the program that forks decoders."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipelines.media.decoder import messages, warm_up
from pipelines.media.decoder.child import ANSWER_BYTES, END, FORK, WAIT
from pipelines.media.decoder.sandbox import Confinement

MODULE = f"{__name__.rpartition('.')[0]}.child"
"""Name of the program's module, which has a prefix in a registered model."""
ROOT = Path(__file__).resolve().parents[__name__.count(".")]
"""Folder that the module is imported from."""
ENVIRONMENT = (
    *("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
    *("LANG", "LC_ALL", "LC_CTYPE", "SYSTEMROOT"),
)
"""Environment variables that a decoder inherits: paths of libraries, encoding of names."""
START_SECONDS = 120.0
"""Wall time limit to load the libraries, on a busy machine."""
_ANSWER_SECONDS = 30.0


class DecoderStartError(OSError):
    """Raised if the decoder program does not start."""


class Template:
    """The running program, which is confined and has read no media."""

    def __init__(self, max_memory_bytes: int) -> None:
        """Starts the program.

        Raises:
            OSError: If it does not start.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    # -P keeps modules of the working directory from coming first, and -B keeps
                    # the program from writing into a loaded model.
                    [sys.executable, "-P", "-B", "-m", MODULE, str(max_memory_bytes)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=_environment(),
                )
            except BaseException:
                ours.close()
                raise
        self._control = ours
        self._owner = os.getpid()
        try:
            self.confinement = self._hello()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Process ID of the program."""
        return self._process.pid

    @property
    def is_gone(self) -> bool:
        """Whether the program has ended."""
        return self._process.poll() is not None

    def fork(self, channel: int, memory: int) -> int:
        """Forks a decoder with a socket and a memory; returns its process ID.

        Raises:
            OSError: If the program died or cannot fork.
        """
        socket.send_fds(self._control, [FORK], [channel, memory])
        decoder = self._answer()
        if not decoder:
            raise DecoderStartError("the decoder does not start: there is no room for a process")
        return decoder

    def end(self, decoder: int, *, wait: bool = False) -> int | None:
        """Ends a decoder; returns its exit status, or None if the program died too.

        Args:
            decoder: Process ID of the decoder.
            wait: Whether to let it end by itself for a moment.
        """
        try:
            command = WAIT if wait else END
            self._control.sendall(command + decoder.to_bytes(ANSWER_BYTES, "big"))
            return self._answer()
        except OSError:
            return None

    def _answer(self) -> int:
        return int.from_bytes(self._read(ANSWER_BYTES, _ANSWER_SECONDS), "big")

    def close(self) -> None:
        """Ends the program and its decoders."""
        self._control.close()
        if (
            os.getpid() == self._owner
        ):  # a fork of this process must not end the program of its parent
            self._process.kill()
            self._process.wait()

    def _hello(self) -> Confinement:
        try:
            length = int.from_bytes(self._read(messages.LENGTH_BYTES, START_SECONDS), "big")
            header: dict[str, Any] = json.loads(self._read(length, START_SECONDS))
        except OSError as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1.0)
            ended = self._process.poll()
            how = "says nothing" if ended is None else describe_exit(ended)
            raise DecoderStartError(f"the decoder does not start: {how}") from error
        return Confinement(bool(header["seccomp"]), int(header["landlock"]))

    def _read(self, num_bytes: int, seconds: float) -> bytes:
        """Reads exactly this many bytes.

        Raises:
            OSError: If the program dies or takes too long.
        """
        deadline = time.monotonic() + seconds
        data = b""
        while len(data) < num_bytes:
            self._control.settimeout(max(0.001, deadline - time.monotonic()))
            part = self._control.recv(num_bytes - len(data))
            if not part:
                raise DecoderStartError("the decoder's program is gone")
            data += part
        return data


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, **warm_up.ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)}


def describe_exit(returncode: int) -> str:
    """Describes how a process ended, from the return code that `subprocess` reports."""
    if returncode >= 0:
        return f"it exited with code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    if name == "SIGSYS":
        return "it died of SIGSYS, for it made a system call that no decoder makes"
    return f"it died of {name}"

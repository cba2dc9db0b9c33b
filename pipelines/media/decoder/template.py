"""The parent's handle on the program that decoders are forked from."""

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
"""The program by the name that it has where this runs."""
ROOT = Path(__file__).resolve().parents[__name__.count(".")]
"""The folder that it is imported from."""
ENVIRONMENT = (
    *("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
    *("LANG", "LC_ALL", "LC_CTYPE", "SYSTEMROOT"),
)
"""Variables that the decoder inherits: where libraries lie, and how names are encoded."""
START_SECONDS = 120.0
"""Wall time to load the libraries, on a machine that has much else to do."""
_ANSWER_SECONDS = 30.0


class DecoderStartError(OSError):
    """The decoder's program does not start."""


class Template:
    """The program; it is confined and has read no media."""

    def __init__(self, max_memory_bytes: int) -> None:
        """Starts it.

        Raises:
            OSError: If it does not start.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    # Without -P modules of the folder that the job runs in would come first, and
                    # without -B it would write into a model that is loaded.
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
        """The program's process."""
        return self._process.pid

    @property
    def is_gone(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def fork(self, channel: int, memory: int) -> int:
        """Makes a decoder that talks over a socket and writes into a memory; gives its process.

        Raises:
            OSError: If the program is gone, or can fork no more.
        """
        socket.send_fds(self._control, [FORK], [channel, memory])
        decoder = self._answer()
        if not decoder:
            raise DecoderStartError("the decoder does not start: there is no room for a process")
        return decoder

    def end(self, decoder: int, *, wait: bool = False) -> int | None:
        """Ends a decoder; gives its exit status, None if the program is gone as well.

        Args:
            decoder: Its process.
            wait: Let it end by itself for a moment.
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
        """Ends the program, and its decoders with it."""
        self._control.close()
        if os.getpid() == self._owner:  # a process that was forked later does not end others'
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
        """Reads so many bytes.

        Raises:
            OSError: If they do not come.
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

"""The decoder program: `python -m pipelines.media.decoder.child MAX_MEMORY_BYTES`.

The program loads and warms up the libraries, drops its privileges, and then forks decoders on
request of its parent, over a socket that is its standard input. It reads no media itself, so every
decoder starts clean. A decoder gets the descriptor of one file over its own socket, and answers
there.

                 control: fork, end                        channel: file, settings
    parent  <----------------------->  this program        <----------------------> decoder
                 decoders, exit statuses    forks it            segments, reasons
"""

import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any

from pipelines.media.container import DecodeError
from pipelines.media.decode import decode_segments
from pipelines.media.decoder import sandbox
from pipelines.media.decoder.huge_pages import Heap
from pipelines.media.decoder.messages import LENGTH_BYTES, TAKEN, segment_header, send
from pipelines.media.decoder.shared_memory import SharedMemory
from pipelines.media.decoder.warm_up import warm_up
from pipelines.media.segments import Segment
from pipelines.redaction import one_line

FORK, END, WAIT = b"f", b"e", b"w"
"""Requests of the parent: fork a decoder, end one, or first wait for it to end."""
ANSWER_BYTES = 4
"""Bytes of the process ID that follows END and WAIT, and of each answer: a process ID (0 if forking
failed) or an exit status."""
_WAIT_SECONDS = 2.0
_ORPHAN_SECONDS = 5.0


def main() -> None:
    """Serves the parent until it closes the socket or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    warm_up()
    heap = Heap()
    found = sandbox.confine(int(sys.argv[1]))
    send(control, {"seccomp": found.seccomp, "landlock": found.landlock})
    template = _Template(control, heap, is_locked=found.seccomp)
    parent = os.getppid()
    while os.getppid() == parent:  # other children of the parent may hold its end of the socket
        if select.select([control], [], [], _ORPHAN_SECONDS)[0]:
            command, files, _, _ = socket.recv_fds(control, 1, 2)
            if not command:
                break
            template.obey(command, files)
    template.end_all()


class _Template:
    """Forks decoders: one that decodes, and the next one, which waits."""

    def __init__(self, control: socket.socket, heap: Heap, *, is_locked: bool) -> None:
        self._control = control
        self._heap = heap
        self._is_locked = is_locked
        self._decoders: set[int] = set()

    def obey(self, command: bytes, files: list[int]) -> None:
        """Executes a request of the parent."""
        if command == FORK:
            answer = self._fork(*files)
            for file in files:
                os.close(file)
        else:
            decoder = int.from_bytes(_read(self._control, ANSWER_BYTES), "big")
            answer = self._end(decoder, _WAIT_SECONDS if command == WAIT else 0.0)
        self._control.sendall(answer.to_bytes(ANSWER_BYTES, "big"))

    def end_all(self) -> None:
        """Ends all decoders."""
        for decoder in list(self._decoders):
            self._end(decoder, 0.0)

    def _end(self, decoder: int, patience_seconds: float) -> int:
        """Ends a decoder that does not end in time; returns its exit status."""
        if decoder not in self._decoders:
            return 0
        self._decoders.remove(decoder)
        give_up_at = time.monotonic() + patience_seconds
        while time.monotonic() < give_up_at:
            ended, status = os.waitpid(decoder, os.WNOHANG)
            if ended:
                return status
            time.sleep(0.005)
        os.kill(decoder, signal.SIGKILL)
        return os.waitpid(decoder, 0)[1]

    def _fork(self, channel: int, memory: int) -> int:
        parent = os.getpid()
        try:
            decoder = os.fork()
        except OSError:
            return 0
        if decoder:
            self._decoders.add(decoder)
            return decoder
        try:
            self._control.close()
            self._decode(parent, channel, memory)
            os._exit(0)
        finally:
            os._exit(1)

    def _decode(self, parent: int, channel: int, memory: int) -> None:
        sandbox.die_with_parent()
        if os.getppid() != parent:
            return
        self._heap.make_own()
        own = socket.socket(fileno=channel)
        shared = SharedMemory(memory)
        # FFmpeg's libraries may print to the standard descriptors.
        if self._is_locked:
            sandbox.lock()
        _serve(own, shared)


def _serve(channel: socket.socket, memory: SharedMemory) -> None:
    """Decodes the file that the parent sends."""
    start, files, _, _ = socket.recv_fds(channel, LENGTH_BYTES, 1)
    if start:
        request = json.loads(_read(channel, int.from_bytes(start, "big")))
        (file,) = files
        try:
            _answer(channel, memory, file, request)
        finally:
            os.close(file)


def _read(channel: socket.socket, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        part = os.read(channel.fileno(), num_bytes - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _answer(
    channel: socket.socket, memory: SharedMemory, file: int, request: dict[str, Any]
) -> None:
    """Decodes a file until its end, or until the parent dies."""
    answer: dict[str, object] = {"end": True}
    is_free = True
    try:
        for segment in decode_segments(file, **request["settings"]):
            if not is_free and os.read(channel.fileno(), 1) != TAKEN:
                return
            _put(memory, segment)
            _say(channel, segment_header(segment))
            is_free = False
    except DecodeError as error:
        answer = {"error": error.reason, "message": error.message}
    except BrokenPipeError:
        return
    except Exception as error:  # PyAV may raise anything; one file must not end the run
        answer = {"error": "undecodable", "message": f"{type(error).__name__}: {one_line(error)}"}
    if not is_free and os.read(channel.fileno(), 1) != TAKEN:
        return
    _say(channel, answer)


def _say(channel: socket.socket, message: dict[str, object]) -> None:
    data = json.dumps(message).encode()
    data = len(data).to_bytes(LENGTH_BYTES, "big") + data
    while data:
        data = data[os.write(channel.fileno(), data) :]


def _put(memory: SharedMemory, segment: Segment) -> None:
    frames, waveform = segment.frames, segment.waveform
    shape = None if frames is None else frames.shape
    num_samples = 0 if waveform is None else len(waveform)
    try:
        targets = memory.arrays(shape, num_samples)
    except (ValueError, OSError) as error:
        raise DecodeError("out_of_memory", f"no room for a segment: {error}") from error
    for target, array in zip(targets, (frames, waveform), strict=True):
        if target is not None and array is not None:
            target[...] = array


if __name__ == "__main__":
    main()

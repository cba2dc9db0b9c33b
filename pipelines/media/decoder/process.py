"""Decoding in processes of its own, so that whatever a file does to FFmpeg costs that file.

`DecoderProcess` is the parent's side, `child` the other. The parent opens the file and
sends its descriptor; the decoder opens nothing, reaches nothing and is asked for nothing but
segments, each of which is checked.

Each file gets a decoder of its own, forked from a program that has read no media. So a file that
gets hold of its decoder can falsify its own segments, and nothing else. The next decoder is forked
and confined while this one decodes:

    decoder 1    [fork, confine][ decode file 1  ]
    decoder 2                    [fork, confine].......[ decode file 2  ]
    memory        A              B                      A is handed on to decoder 3
"""

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

from pipelines.media.container import DecodeError, open_file
from pipelines.media.decoder.forked import DeadDecoderError, ForkedDecoder, Patience
from pipelines.media.decoder.messages import (
    NONSENSE,
    OUTSIDE_REASONS,
    Expectation,
)
from pipelines.media.decoder.sandbox import Confinement, Sandbox, check_required
from pipelines.media.decoder.shared_memory import SharedMemory
from pipelines.media.decoder.template import DecoderStartError, Template, describe_exit
from pipelines.media.formats import Formats
from pipelines.media.segments import Segment
from pipelines.redaction import one_line

__all__ = ["OUTSIDE_REASONS", "DecoderProcess", "DecoderStartError"]


class DecoderProcess:
    """Decodes each file in a confined process; they start with the first file and as needed.

    Args:
        max_memory_bytes: Address space of a decoder beyond what it has when idle.
        timeout_seconds: Wall time for each answer.
        timeout_ratio: Wall time, or CPU time, that a whole file may take for each of its seconds,
            beside `timeout_seconds`.
        formats: Which containers and codecs are decoded.
        sandbox: `required` refuses to decode where the kernel does not confine the decoder in full.
    """

    def __init__(
        self,
        *,
        max_memory_bytes: int,
        timeout_seconds: float,
        timeout_ratio: float = 20.0,
        formats: Formats = "common",
        sandbox: Sandbox = "best",
    ) -> None:
        self._max_memory_bytes = max_memory_bytes
        self._patience = Patience(timeout_seconds, timeout_ratio)
        self._formats = formats
        self._sandbox = sandbox
        self._template: Template | None = None
        self._decoder: ForkedDecoder | None = None
        self._next: ForkedDecoder | None = None
        self._memories: list[SharedMemory] = []
        self._owner = os.getpid()

    def start(self) -> Confinement:
        """Starts the program that decoders are forked from, and says how far it is confined.

        Raises:
            SandboxError: If that is not enough.
            OSError: If it does not start.
        """
        if self._owner != os.getpid():  # this process was forked later: the program is not its own
            self.close()
            self._owner = os.getpid()
        if self._template is not None and self._template.is_gone:
            self.close()
        if self._template is None:
            self._template = Template(self._max_memory_bytes)
            try:
                check_required(self._sandbox, self._template.confinement)
            except OSError:
                self.close()
                raise
        return self._template.confinement

    def segments(self, source: str | bytes, **settings: Any) -> Iterator[Segment]:
        """Gives what `decode.decode_segments` gives, decoded elsewhere.

        Args:
            source: A path, or the bytes of a file.
            settings: Those of `decode_segments`.

        Raises:
            DecodeError: As there, and if the decoder dies, lies or takes too long.
            SandboxError: If it is to be confined and cannot be.
            OSError: If it cannot be started.
        """
        expectation = Expectation(settings)
        file = open_file(source) if isinstance(source, str) else _file_of(source)
        decoder = None
        try:
            decoder = self._request(file, expectation, {"formats": self._formats} | settings)
            while True:
                answer = decoder.answer(expectation)
                if isinstance(answer, DecodeError):
                    raise answer
                if answer is None:
                    return
                yield answer
        except DeadDecoderError as error:
            raise DecodeError("decoder_crashed", self._cause(decoder)) from error
        except NONSENSE as error:
            raise DecodeError("decoder_crashed", f"it talks nonsense: {one_line(error)}") from error
        finally:
            os.close(file)
            # A generator that is left may be closed late, when another decoder is at work.
            if decoder is self._decoder:
                self.renew()

    def renew(self) -> None:
        """Ends the decoder; the next file gets a new one."""
        decoder, self._decoder = self._decoder, None
        self._end(decoder)

    def close(self) -> None:
        """Ends the decoders and what they were forked from."""
        decoders, self._decoder, self._next = (self._decoder, self._next), None, None
        template, self._template = self._template, None
        for decoder in decoders:
            if decoder is not None:
                decoder.close()
                self._memories.append(decoder.memory)
        if template is not None:
            template.close()
        for memory in self._memories:
            memory.close()
        self._memories.clear()

    def _end(self, decoder: ForkedDecoder | None) -> None:
        if decoder is None:
            return
        decoder.close()
        if self._template is not None and self._template.end(decoder.process) is None:
            self.close()
        self._memories.append(decoder.memory)  # it is dead, so nobody else writes there

    def _request(
        self, file: int, expectation: Expectation, settings: dict[str, Any]
    ) -> ForkedDecoder:
        self.renew()
        for _ in range(2):
            try:
                self.start()
                self._decoder = decoder = self._forked(expectation.max_bytes)
                decoder.request(file, settings)
            except (BrokenPipeError, ConnectionError):
                self.close()  # it died between two files: not the fault of this one
                continue
            with contextlib.suppress(OSError):  # then the next file finds it out
                self._next = self._fork(expectation.max_bytes)
            return decoder
        raise DecoderStartError("the decoder does not start")

    def _forked(self, max_bytes: int) -> ForkedDecoder:
        """The decoder that was forked ahead, or a new one where its memory is too small."""
        decoder, self._next = self._next, None
        if decoder is not None and decoder.memory.num_bytes < max_bytes:
            self._end(decoder)
            decoder = None
        return decoder or self._fork(max_bytes)

    def _fork(self, max_bytes: int) -> ForkedDecoder:
        if self._template is None:
            self.start()
        assert self._template is not None
        ours, theirs = socket.socketpair()
        memory = self._memory(max_bytes)
        try:
            with theirs:
                process = self._template.fork(theirs.fileno(), memory.file)
        except BaseException:
            ours.close()
            memory.close()
            raise
        return ForkedDecoder(process, ours, memory, self._patience)

    def _memory(self, num_bytes: int) -> SharedMemory:
        """Memory that a decoder has left, or new one; what is too small is given back."""
        while self._memories:
            memory = self._memories.pop()
            if memory.num_bytes >= num_bytes:
                return memory
            memory.close()
        return SharedMemory.new(num_bytes)

    def _cause(self, decoder: ForkedDecoder | None) -> str:
        """How a decoder ended that says nothing more.

        The program that it was forked from goes as well: all that it forks have the same addresses,
        and a crash may be how a file finds them out.
        """
        if self._template is None or decoder is None or decoder is not self._decoder:
            return "it has been ended"
        status = self._template.end(decoder.process, wait=True)
        self.close()
        if status is None:
            return "the program that it was forked from is gone"
        return describe_exit(os.waitstatus_to_exitcode(status))


def _file_of(data: bytes) -> int:
    """A file without a name that holds bytes."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("media", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
    except BaseException:
        os.close(file)
        raise
    return file

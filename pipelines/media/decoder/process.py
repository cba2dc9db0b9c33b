"""Decodes each file in a process of its own, so that a file can harm nothing but itself.

`DecoderProcess` is the parent's side, `child` the other one. The parent opens the file and sends
its descriptor. The decoder opens no file and reaches no network. The parent only asks it for
segments, and checks each of them.

Each decoder is forked from a program that has read no media. A file that takes over its decoder can
therefore falsify its own segments only. The next decoder is forked and confined while one decodes:

    decoder 1    [fork, confine][ decode file 1  ]
    decoder 2                    [fork, confine].......[ decode file 2  ]
    memory        A              B                      decoder 3 reuses A
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
    """Decodes each file in a confined process, which starts when needed.

    Args:
        max_memory_bytes: Address space that a decoder may use beyond its idle state.
        timeout_seconds: Limit of the wall time of each answer.
        timeout_ratio: Limit of the wall or CPU time of a whole file, per second of it, in addition
            to `timeout_seconds`.
        formats: Which containers and codecs are allowed.
        sandbox: `required` refuses to decode where the kernel cannot confine the decoder fully.
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
        """Starts the program that forks decoders; returns how far it is confined.

        Raises:
            SandboxError: If the confinement is insufficient.
            OSError: If the program does not start.
        """
        if self._owner != os.getpid():  # this process is a fork: the program belongs to its parent
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
        """Yields the segments of `decode.decode_segments`, decoded in another process.

        Args:
            source: A path, or the content of a file.
            settings: Those of `decode_segments`.

        Raises:
            DecodeError: As there, and if the decoder dies, answers nonsense or takes too long.
            SandboxError: If confinement is required and not available.
            OSError: If the decoder does not start.
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
            # An abandoned generator may be closed late, while another decoder works.
            if decoder is self._decoder:
                self.renew()

    def renew(self) -> None:
        """Ends the decoder. The next file gets a new one."""
        decoder, self._decoder = self._decoder, None
        self._end(decoder)

    def close(self) -> None:
        """Ends the decoders and the program that forks them."""
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
        self._memories.append(decoder.memory)  # the decoder is dead, so nothing else writes there

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
                self.close()  # it died between two files, which is not the fault of this one
                continue
            with contextlib.suppress(OSError):  # the next file reports it
                self._next = self._fork(expectation.max_bytes)
            return decoder
        raise DecoderStartError("the decoder does not start")

    def _forked(self, max_bytes: int) -> ForkedDecoder:
        """Returns the decoder that was forked ahead, or a new one if its memory is too small."""
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
        """Returns unused memory, or new memory; frees what is too small."""
        while self._memories:
            memory = self._memories.pop()
            if memory.num_bytes >= num_bytes:
                return memory
            memory.close()
        return SharedMemory.new(num_bytes)

    def _cause(self, decoder: ForkedDecoder | None) -> str:
        """Returns how a silent decoder ended.

        Also ends the program that forked it: all its decoders share one address layout, which a
        file could probe by crashes.
        """
        if self._template is None or decoder is None or decoder is not self._decoder:
            return "it has been ended"
        status = self._template.end(decoder.process, wait=True)
        self.close()
        if status is None:
            return "the program that it was forked from is gone"
        return describe_exit(os.waitstatus_to_exitcode(status))


def _file_of(data: bytes) -> int:
    """Returns an unnamed file with the given content."""
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

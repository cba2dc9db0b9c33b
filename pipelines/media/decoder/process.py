"""Decoding in processes of its own, so that whatever a file does to FFmpeg costs that file.

`DecoderProcess` is the parent's side, `child` the other. The parent opens the file and
sends its descriptor; the decoder opens nothing, reaches nothing and is asked for nothing but
segments, each of which is checked.

A decoder is forked from a program that has read no media. It serves files until it has worked for
`SHARED_SECONDS`, or a file failed in it: to fork one for each file would add 15 ms of CPU to each,
half of what a small clip takes (measured). So a file that gets hold of its decoder could falsify
the files of the next two seconds of work; `process_per_file` rules that out.
"""

import os
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

from pipelines.media.container import DecodeError, open_file
from pipelines.media.decoder.forked import DeadDecoderError, ForkedDecoder
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

SHARED_SECONDS = 2.0
"""CPU after which a decoder is replaced before the next file."""
_SPOILING_REASONS = frozenset({"undecodable", "out_of_memory"})
"""Failures after which FFmpeg may not have given back all that it had."""


class DecoderProcess:
    """Decodes files in confined processes; they start with the first file and as they are needed.

    Args:
        max_memory_bytes: Address space of a decoder beyond what it has when idle.
        timeout_seconds: Wall time for each answer.
        formats: Which containers and codecs are decoded.
        sandbox: `required` refuses to decode where the kernel does not confine the decoder in full.
        process_per_file: Fork a decoder for each file.
    """

    def __init__(
        self,
        *,
        max_memory_bytes: int,
        timeout_seconds: float,
        formats: Formats = "common",
        sandbox: Sandbox = "best",
        process_per_file: bool = False,
    ) -> None:
        self._max_memory_bytes = max_memory_bytes
        self._timeout_seconds = timeout_seconds
        self._formats = formats
        self._sandbox = sandbox
        self._shared_seconds = 0.0 if process_per_file else SHARED_SECONDS
        self._template: Template | None = None
        self._decoder: ForkedDecoder | None = None
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
            DecodeError: As there, and if the decoder dies, lies or stays silent for too long.
            SandboxError: If it is to be confined and cannot be.
            OSError: If it cannot be started.
        """
        expectation = Expectation(settings)
        file = open_file(source) if isinstance(source, str) else _file_of(source)
        is_whole, decoder = False, None
        try:
            decoder = self._request(file, expectation, {"formats": self._formats} | settings)
            while True:
                answer = decoder.answer(expectation)
                if isinstance(answer, DecodeError):
                    is_whole = answer.reason not in _SPOILING_REASONS
                    raise answer
                if answer is None:
                    is_whole = True
                    return
                yield answer
        except DeadDecoderError as error:
            raise DecodeError("decoder_crashed", self._cause(decoder)) from error
        except NONSENSE as error:
            raise DecodeError("decoder_crashed", f"it talks nonsense: {one_line(error)}") from error
        finally:
            os.close(file)
            # A generator that is left may be closed late, when another decoder is at work.
            if not is_whole and decoder is self._decoder:
                self.renew()

    def renew(self) -> None:
        """Ends the decoder; the next file gets a new one."""
        decoder, self._decoder = self._decoder, None
        if decoder is not None:
            decoder.close()
            if self._template is not None and self._template.end() is None:
                self.close()

    def close(self) -> None:
        """Ends the decoder and what it was forked from."""
        decoder, self._decoder = self._decoder, None
        template, self._template = self._template, None
        if decoder is not None:
            decoder.close()
        if template is not None:
            template.close()

    def _request(
        self, file: int, expectation: Expectation, settings: dict[str, Any]
    ) -> "ForkedDecoder":
        if self._decoder is not None and not self._decoder.may_serve(
            expectation, self._shared_seconds
        ):
            self.renew()
        for _ in range(2):
            try:
                self.start()
                if self._decoder is None:
                    self._decoder = self._fork(expectation.max_bytes)
                self._decoder.request(file, settings)
                return self._decoder
            except (BrokenPipeError, ConnectionError):
                self.close()  # it died between two files: not the fault of this one
        raise DecoderStartError("the decoder does not start")

    def _fork(self, max_bytes: int) -> "ForkedDecoder":
        assert self._template is not None
        ours, theirs = socket.socketpair()
        memory = SharedMemory.new(max_bytes)
        try:
            with theirs:
                process = self._template.fork(theirs.fileno(), memory.file)
        except BaseException:
            ours.close()
            memory.close()
            raise
        return ForkedDecoder(process, ours, memory, self._timeout_seconds)

    def _cause(self, decoder: "ForkedDecoder | None") -> str:
        """How a decoder ended that says nothing more.

        The program that it was forked from goes as well: all that it forks have the same addresses,
        and a crash may be how a file finds them out.
        """
        if self._template is None or decoder is not self._decoder:
            return "it has been ended"
        status = self._template.end(wait=True)
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

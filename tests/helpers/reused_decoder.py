"""A decoder that is not confined and serves file after file: what confinement costs beside it."""

import socket
from typing import Any

from pipelines.media.decoder import child, sandbox, template
from pipelines.media.decoder.forked import ForkedDecoder
from pipelines.media.decoder.messages import Expectation
from pipelines.media.decoder.process import DecoderProcess
from pipelines.media.decoder.sandbox import Confinement
from pipelines.media.decoder.shared_memory import SharedMemory


class ReusedDecoder(DecoderProcess):
    """Decodes all files in one process; for benchmarks alone."""

    def start(self) -> Confinement:
        module, template.MODULE = template.MODULE, __name__
        try:
            return super().start()
        finally:
            template.MODULE = module

    def renew(self) -> None:
        """Keeps the decoder."""

    def _request(
        self, file: int, expectation: Expectation, settings: dict[str, Any]
    ) -> ForkedDecoder:
        if self._decoder is None:
            return super()._request(file, expectation, settings)
        self._decoder.request(file, settings)
        return self._decoder


def serve_all(channel: socket.socket, memory: SharedMemory) -> None:
    """Decodes files until the parent goes."""
    while channel.recv(1, socket.MSG_PEEK):
        serve_one(channel, memory)


if __name__ == "__main__":
    serve_one = child._serve
    child._serve = serve_all
    sandbox.available = lambda: Confinement(seccomp=False, landlock=0)
    child.main()

"""The part of a replica that holds the encoder: media become segments, segments an embedding.

    request 1  --[confined decoder]--> segments --+
                                                  +-- batch --> encoder --> mean of each request
    request 2  --[confined decoder]--> segments --+

Each file is decoded by a thread that drives a confined process. Its segments go to the encoder as
they come, in batches with those of other requests. The thread takes the next file while they wait,
so that the encoder finds full batches:

    decoders    [file 1][file 2][file 3][file 4]...
    encoder             [1 and 2       ][3 and 4       ]...
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.config.serve import ServeConfig
from pipelines.media.container import DecodeError
from pipelines.media.decoder.process import DecoderProcess
from pipelines.media.decoder.sandbox import SandboxError
from pipelines.media.decoder.template import DecoderStartError
from pipelines.models.encoder_inputs import ARRAY_COLUMN, RATE_COLUMN
from pipelines.registry.pull import fetch
from pipelines.registry.uri import EncoderVersion
from pipelines.serving.refusal import RefusedError

logger = logging.getLogger(__name__)

Array = NDArray[Any]
_SHORTEST_SECONDS = 1e-6
"""A file of any length has an embedding, as for the pulled model."""
_BATCHES_AHEAD = 2
"""Segments of all requests that are decoded ahead of the encoder, in batches. They bound memory."""


@dataclass(frozen=True)
class Embedded:
    """The embedding of a file."""

    embedding: NDArray[np.float32]
    num_segments: int


class Embedder:
    """Embeds files with a verified copy of a registered model.

    Args:
        config: The settings of the service.
        version: The model.
        server: Where MLflow keeps it.
    """

    def __init__(self, config: ServeConfig, version: EncoderVersion, server: str) -> None:
        # Models of this project hold no pickles. MLflow refuses models that do.
        os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
        if not config.num_gpus:  # Ray may leave GPUs visible that it did not give
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self.version = version
        self._config = config
        self._files = TemporaryDirectory(prefix="xkd-model-")
        folder = fetch(version, server, Path(self._files.name))
        self._model = mlflow.pyfunc.load_model(str(folder))
        self._threads = ThreadPoolExecutor(config.num_decoders, "decode")
        self._decoders: SimpleQueue[DecoderProcess] = SimpleQueue()
        for _ in range(config.num_decoders):
            self._decoders.put(self._new_decoder())
        self._batched = self._make_batched()
        self._room = threading.Semaphore((1 + _BATCHES_AHEAD) * config.max_batch_size)

    def _new_decoder(self) -> DecoderProcess:
        limits = self._config.limits
        return DecoderProcess(
            max_memory_bytes=limits.max_memory_bytes,
            timeout_seconds=min(limits.max_decode_seconds, self._config.max_request_seconds),
            timeout_ratio=limits.max_decode_ratio,
            formats=limits.formats,
            sandbox=self._config.decoder.sandbox,
        )

    def _make_batched(self) -> Callable[[Array], Awaitable[NDArray[np.float32]]]:
        from ray import serve  # optional

        @serve.batch(
            max_batch_size=self._config.max_batch_size,
            batch_wait_timeout_s=self._config.batch_wait_seconds,
        )
        async def batched(arrays: list[Array]) -> list[NDArray[np.float32]]:
            return await asyncio.to_thread(self._predict, arrays)

        return batched

    async def embed(self, media: bytes) -> Embedded:
        """Embeds the content of a file.

        Raises:
            RefusedError: If it cannot be embedded; the message names the reason.
        """
        loop = asyncio.get_running_loop()
        segments = _Segments(time.monotonic() + self._config.max_request_seconds)
        try:
            await loop.run_in_executor(self._threads, self._decode, media, segments, loop)
            embeddings = await asyncio.gather(*map(asyncio.wrap_future, segments.waiting))
        finally:  # also if the client has gone
            segments.end()
        if not embeddings:
            modality = self.version.modality
            missing = "picture" if modality == "video" else "sound"
            raise RefusedError(
                422, f"the file has no {missing}, which the {modality} encoder needs"
            )
        mean = np.stack(embeddings).mean(axis=0, dtype=np.float64)
        return Embedded(mean.astype(np.float32), len(embeddings))

    def _decode(self, media: bytes, segments: "_Segments", loop: asyncio.AbstractEventLoop) -> None:
        """Decodes a file in a thread, and hands its segments to the encoder."""
        if segments.is_ended:
            return
        for array in self._arrays(media, segments.deadline):
            if not self._room.acquire(timeout=max(0.0, segments.deadline - time.monotonic())):
                raise _too_long()
            future = asyncio.run_coroutine_threadsafe(_of(self._batched, array), loop)
            future.add_done_callback(lambda _: self._room.release())
            if not segments.add(future):
                return

    def _arrays(self, media: bytes, deadline: float) -> Iterator[Array]:
        """Yields the frames or the waveform of each segment."""
        decoder = self._decoders.get()
        try:
            for segment in decoder.segments(media, **self._decode_settings()):
                if time.monotonic() > deadline:
                    raise _too_long()
                is_video = self.version.modality == "video"
                array = segment.frames if is_video else segment.waveform
                if array is not None:
                    yield array
        except DecodeError as error:
            raise RefusedError(
                422, f"the file cannot be decoded: {error.reason}, {error.message}"
            ) from error
        except (SandboxError, DecoderStartError, OSError) as error:
            logger.exception("no decoder")
            raise RefusedError(
                503, "no decoder could be started; the service's log says why"
            ) from error
        finally:
            decoder.renew()
            self._decoders.put(decoder)

    def _decode_settings(self) -> dict[str, float]:
        clips, limits = self.version.clips, self._config.limits
        return {
            "segment_seconds": clips.segment_seconds,
            "min_segment_seconds": clips.min_segment_seconds,
            "min_source_seconds": _SHORTEST_SECONDS,
            "frame_rate": self.version.frame_rate,
            "short_side": clips.short_side,
            "sample_rate": self.version.sample_rate,
            "max_pixels": limits.max_pixels,
            "max_damaged_fraction": limits.max_damaged_fraction,
            "max_seconds": limits.max_seconds,
        }

    def _predict(self, arrays: list[Array]) -> list[NDArray[np.float32]]:
        modality = self.version.modality
        is_video = modality == "video"
        rate = self.version.frame_rate if is_video else float(self.version.sample_rate)
        inputs = pd.DataFrame(
            {
                ARRAY_COLUMN[modality]: pd.Series(arrays, dtype=object),
                RATE_COLUMN[modality]: rate,
            }
        )
        windows = self._config.max_batch_size * self.version.clips.num_windows
        return list(self._model.predict(inputs, {"batch_size": windows}))


class _Segments:
    """The segments of a request, in their order.

    Args:
        deadline: When decoding ends, on the monotonic clock.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.waiting: list[Future[NDArray[np.float32]]] = []
        self._ended = threading.Event()

    @property
    def is_ended(self) -> bool:
        """Whether nobody waits for them."""
        return self._ended.is_set()

    def add(self, future: "Future[NDArray[np.float32]]") -> bool:
        """Adds one. Returns whether the next one is wanted."""
        self.waiting.append(future)
        future.add_done_callback(self._end_if_failed)
        if self.is_ended:
            future.cancel()
        return not self.is_ended

    def end(self) -> None:
        """Ends decoding, and drops what the encoder has not begun."""
        self._ended.set()
        for future in list(self.waiting):
            future.cancel()

    def _end_if_failed(self, future: "Future[NDArray[np.float32]]") -> None:
        if not future.cancelled() and future.exception() is not None:
            self._ended.set()


def _too_long() -> RefusedError:
    return RefusedError(422, "the file takes longer than max_request_seconds")


async def _of(
    batched: Callable[[Array], Awaitable[NDArray[np.float32]]], array: Array
) -> NDArray[np.float32]:
    """Makes a coroutine of a batched call."""
    return await batched(array)

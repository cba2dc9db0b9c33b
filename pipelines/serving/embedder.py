"""The part of a replica that holds the encoder: media become segments, segments an embedding.

    request 1  --[confined decoder]--> segments --+
                                                  +-- batch --> encoder --> mean of each request
    request 2  --[confined decoder]--> segments --+

Each file is decoded by a thread that drives a confined process. Its segments go to the encoder as
they come, in batches with those of other requests.
"""

import asyncio
import logging
import os
import time
from collections import deque
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
"""Segments of one request that wait for the encoder, in batches."""


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
        return await loop.run_in_executor(self._threads, self._embed, media, loop)

    def _embed(self, media: bytes, loop: asyncio.AbstractEventLoop) -> Embedded:
        """Decodes a file and waits for the embeddings of its segments, in a thread."""
        deadline = time.monotonic() + self._config.max_request_seconds
        waiting: deque[Future[NDArray[np.float32]]] = deque()
        total = np.zeros(1)
        num_segments = 0
        try:
            for array in self._arrays(media, deadline):
                waiting.append(asyncio.run_coroutine_threadsafe(_of(self._batched, array), loop))
                num_segments += 1
                if len(waiting) > _BATCHES_AHEAD * self._config.max_batch_size:
                    total = total + waiting.popleft().result()
            while waiting:
                total = total + waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
        if not num_segments:
            modality = self.version.modality
            missing = "picture" if modality == "video" else "sound"
            raise RefusedError(
                422, f"the file has no {missing}, which the {modality} encoder needs"
            )
        return Embedded((total / num_segments).astype(np.float32), num_segments)

    def _arrays(self, media: bytes, deadline: float) -> Iterator[Array]:
        """Yields the frames or the waveform of each segment."""
        decoder = self._decoders.get()
        try:
            for segment in decoder.segments(media, **self._decode_settings()):
                if time.monotonic() > deadline:
                    raise RefusedError(422, "the file takes longer than max_request_seconds")
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


async def _of(
    batched: Callable[[Array], Awaitable[NDArray[np.float32]]], array: Array
) -> NDArray[np.float32]:
    """Makes a coroutine of a batched call."""
    return await batched(array)

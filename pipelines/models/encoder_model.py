"""A registered encoder: turns media or decoded arrays into one embedding each.

This file and the modules that it imports travel inside the model, so it needs no Ray, no registry,
and no checkout, and nothing is unpickled. Decoding, cutting, and windows are those of evaluation,
and their settings are stored beside the weights:

    input  ->  segments of 5 s  ->  2 windows each  ->  embeddings (windows, D)
    embedding of a segment: mean over its windows; of an input: mean over its segments
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray
from torch import Tensor

from pipelines.media.formats import Formats
from pipelines.media.windows import audio_windows, video_windows
from pipelines.models.encoder_files import load_encoder
from pipelines.models.encoder_inputs import input_rows, read_segments
from pipelines.models.input_decoder import Decode, InputDecoder
from xkd_core.views.log_mel import LogMel
from xkd_core.views.video import plain_video_view
from xkd_core.views.views import plain_audio_view

ENCODER_ARTIFACT = "encoder"
DEFAULT_BATCH_SIZE = 8

Array = NDArray[Any]


class InputError(MlflowException, ValueError):
    """An input that cannot be embedded; MLflow's server answers with its message alone."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=BAD_REQUEST)


class EncoderModel(PythonModel):
    """The model as MLflow loads it."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the encoder onto the GPU, or the CPU if there is none."""
        encoder, self._info = load_encoder(Path(context.artifacts[ENCODER_ARTIFACT]))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._encoder = encoder.to(self._device)
        self._log_mel = LogMel(self._info.model.audio).to(self._device)
        self._decoder = InputDecoder()

    @torch.no_grad()
    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - MLflow's interface
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> NDArray[np.float32]:
        """Embeds each input: (inputs, D).

        Raises:
            InputError: If an input has unknown columns or types, cannot be decoded, or lacks the
                modality; the message names the input. It is a ValueError too.
        """
        try:
            return self._predict(model_input, params or {})
        except ValueError as error:
            raise InputError(str(error)) from error

    def _predict(self, model_input: pd.DataFrame, params: dict[str, Any]) -> NDArray[np.float32]:
        num_windows = int(params.get("num_windows", self._info.clips.num_windows))
        batch_size = int(params.get("batch_size", DEFAULT_BATCH_SIZE))
        if num_windows < 1 or batch_size < 1:
            raise ValueError(
                f"num_windows ({num_windows}) and batch_size ({batch_size}) must be at least 1"
            )
        formats = params.get("formats", "common")
        if formats not in ("common", "all"):
            raise ValueError(f"formats ({formats}) must be common or all")
        with self._decoder.lent() as decode:
            return self._embed_rows(model_input, num_windows, batch_size, decode, formats)

    def _embed_rows(
        self,
        model_input: pd.DataFrame,
        num_windows: int,
        batch_size: int,
        decode: Decode,
        formats: Formats,
    ) -> NDArray[np.float32]:
        origins: list[tuple[int, int]] = []
        embeddings: list[NDArray[np.float32]] = []
        batch: list[Tensor] = []
        num_inputs = 0
        for index, row in enumerate(input_rows(model_input)):
            num_inputs += 1
            segments = read_segments(row, f"input {index}", self._info, decode, formats)
            for segment, array in enumerate(segments):
                for window in self._windows(array, num_windows):
                    origins.append((index, segment))
                    batch.append(self._view(window))
                    if len(batch) == batch_size:
                        embeddings.append(self._embed(batch))
                        batch.clear()
        if batch:
            embeddings.append(self._embed(batch))
        return _mean_by_input(origins, embeddings, num_inputs, self._info.model.encoder.width)

    def _windows(self, array: Array, num_windows: int) -> list[Array]:
        if self._info.modality == "video":
            return list(video_windows(array, self._info.model.video.num_frames, num_windows))
        return list(audio_windows(array, self._info.model.audio.num_samples, num_windows))

    def _view(self, window: Array) -> Tensor:
        # One window at a time, so that inputs of different sizes need no padding. Copied, because
        # torch warns about the read-only arrays that a dataset gives.
        clip = torch.from_numpy(np.array(window)).unsqueeze(0).to(self._device)
        if self._info.modality == "audio":
            return plain_audio_view(clip, self._log_mel)
        height, width = (torch.tensor([side], device=self._device) for side in clip.shape[2:4])
        return plain_video_view(clip, height, width, self._info.model.video.size)

    def _embed(self, batch: list[Tensor]) -> NDArray[np.float32]:
        embedding: NDArray[np.float32] = self._encoder.embed(torch.cat(batch)).cpu().numpy()
        return embedding


def _mean_by_input(
    origins: list[tuple[int, int]],
    embeddings: list[NDArray[np.float32]],
    num_inputs: int,
    width: int,
) -> NDArray[np.float32]:
    """Averages over the windows of each segment, then over the segments of each input.

    Args:
        origins: Input and segment of each window.
        embeddings: Of the windows, in batches (B, D).
        num_inputs: N.
        width: D.

    Returns:
        One embedding per input (N, D).
    """
    if not num_inputs:
        return np.zeros((0, width), np.float32)
    segments, segment_of, num_windows = np.unique(
        np.array(origins), axis=0, return_inverse=True, return_counts=True
    )
    of_segments = np.zeros((len(segments), width))
    np.add.at(of_segments, segment_of.reshape(-1), np.concatenate(embeddings))
    of_segments /= num_windows[:, None]
    num_segments = np.bincount(segments[:, 0], minlength=num_inputs)
    of_inputs = np.zeros((num_inputs, width))
    np.add.at(of_inputs, segments[:, 0], of_segments)
    return (of_inputs / num_segments[:, None]).astype(np.float32)

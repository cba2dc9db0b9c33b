"""A registered encoder: turns media or decoded arrays into one embedding each.

This file and the modules that it imports travel inside the model, so it needs no Ray, no registry,
and no checkout, and nothing is unpickled. Decoding, cutting, and windows are those of evaluation,
and their settings are stored beside the weights:

    input  ->  segments of 5 s  ->  2 windows each  ->  embeddings (windows, D)
    embedding of a segment: mean over its windows; of an input: mean over its segments
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray
from torch import Tensor

from pipelines.media.formats import Formats
from pipelines.media.windows import audio_windows, video_windows
from pipelines.models.encoder_inputs import input_rows, read_segments
from pipelines.models.encoder_module import AudioView, EncoderModule, load_module
from pipelines.models.input_decoder import Decode, InputDecoder
from pipelines.models.mlflow_server import answer_in_one_line, read_any_from_csv, take_tensors
from pipelines.models.request_bodies import InputError, failure_of
from xkd_core.views.video import plain_video_view
from xkd_core.views.views import plain_audio_view

DEFAULT_BATCH_SIZE = 8
_MAX_BATCH_SIZE = 10_000
_MAX_WINDOWS = 1_000

logger = logging.getLogger(__name__)

Array = NDArray[Any]


class _Settings(NamedTuple):
    """The parameters of a call."""

    num_windows: int
    batch_size: int
    formats: Formats
    keeps_going: bool
    """Whether an input that cannot be embedded does not end the call."""


class EncoderModel(PythonModel):
    """The model as MLflow loads it.

    `module` is the encoder as a `torch.nn.Module`, which `mlflow.pyfunc.load_model(URI)` has as
    `.unwrap_python_model().module`. `predict` uses the same weights, also after fine-tuning.
    """

    module: EncoderModule
    answers_in_one_line = True
    """Read by `mlflow_server`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load_context(self, context: PythonModelContext) -> None:  # noqa: ARG002 - MLflow's
        """Loads the encoder onto the GPU, or the CPU if there is none."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.module = load_module(self._folder).to(device)
        self._info = self.module.info
        self._decoder = InputDecoder()
        read_any_from_csv()
        answer_in_one_line()
        take_tensors()

    @property
    def _device(self) -> torch.device:
        return self.module.encoder.cls_token.device

    @torch.no_grad()
    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - MLflow's interface
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> NDArray[np.float32] | pd.DataFrame:
        """Embeds each input: (inputs, D).

        With the parameter `on_error="null"` the answer is a table of two columns: `embedding`, a
        list of numbers or None, and `error`, None or the reason.

        Raises:
            InputError: If an input has unknown columns or types, cannot be decoded, or lacks the
                modality; the message names the input. It is a ValueError too.
            MlflowException: If anything else fails; the log says why.
        """
        try:
            with _own_defaults(self._device):
                return self._predict(model_input, params or {})
        except ValueError as error:
            raise InputError(str(error)) from error
        except Exception as error:
            logger.exception("an encoder failed")
            raise failure_of("the encoder", error) from error

    def _predict(
        self, model_input: pd.DataFrame, params: dict[str, Any]
    ) -> NDArray[np.float32] | pd.DataFrame:
        settings = self._settings(params)
        with self._decoder.lent() as decode:
            embeddings, errors = self._embed_rows(model_input, settings, decode)
        return _table(embeddings, errors) if settings.keeps_going else embeddings

    def _settings(self, params: Mapping[str, Any]) -> _Settings:
        num_windows = params.get("num_windows", self._info.clips.num_windows)
        batch_size = params.get("batch_size", DEFAULT_BATCH_SIZE)
        _check_count("num_windows", num_windows, _MAX_WINDOWS)
        _check_count("batch_size", batch_size, _MAX_BATCH_SIZE)
        formats = params.get("formats", "common")
        if formats not in ("common", "all"):
            raise ValueError(f"formats ({formats}) must be common or all")
        on_error = params.get("on_error", "raise")
        if on_error not in ("raise", "null"):
            raise ValueError(f"on_error ({on_error}) must be raise or null")
        return _Settings(int(num_windows), int(batch_size), formats, on_error == "null")

    def _embed_rows(
        self, model_input: pd.DataFrame, settings: _Settings, decode: Decode
    ) -> tuple[NDArray[np.float32], dict[int, str]]:
        """Returns the embeddings, NaN where there is none, and the errors of those inputs."""
        origins: list[tuple[int, int]] = []
        embeddings: list[NDArray[np.float32]] = []
        batch: list[Tensor] = []
        errors: dict[int, str] = {}
        num_inputs = 0
        for index, row in enumerate(input_rows(model_input, self._info)):
            num_inputs += 1
            segments = read_segments(row, f"input {index}", self._info, decode, settings.formats)
            try:
                for segment, array in enumerate(segments):
                    for window in self._windows(array, settings.num_windows):
                        origins.append((index, segment))
                        batch.append(self._view(window))
                        if len(batch) == settings.batch_size:
                            embeddings.append(self._embed(batch))
                            batch.clear()
            except ValueError as error:
                if not settings.keeps_going:
                    raise
                errors[index] = str(error)
        if batch:
            embeddings.append(self._embed(batch))
        found = _mean_by_input(origins, embeddings, num_inputs, self._info.model.encoder.width)
        found[list(errors)] = np.nan  # also those that failed after a segment
        return found, errors

    def _windows(self, array: Array, num_windows: int) -> list[Array]:
        if self._info.modality == "video":
            return list(video_windows(array, self._info.model.video.num_frames, num_windows))
        return list(audio_windows(array, self._info.model.audio.num_samples, num_windows))

    def _view(self, window: Array) -> Tensor:
        # One window at a time, so that inputs of different sizes need no padding. Copied, because
        # torch warns about the read-only arrays that a dataset gives.
        clip = torch.from_numpy(np.array(window)).unsqueeze(0).to(self._device)
        if isinstance(self.module.view, AudioView):
            return plain_audio_view(clip, self.module.view.log_mel)
        height, width = (torch.tensor([side], device=self._device) for side in clip.shape[2:4])
        return plain_video_view(clip, height, width, self._info.model.video.size)

    def _embed(self, batch: list[Tensor]) -> NDArray[np.float32]:
        encoder = self.module.encoder
        views = torch.cat(batch).to(encoder.cls_token.dtype)
        embedding: NDArray[np.float32] = encoder.embed(views).cpu().numpy()
        return embedding


def _check_count(name: str, value: Any, most: int) -> None:
    """Refuses what is no count, or so large that one request would take all memory."""
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or not 1 <= value <= most:
        raise ValueError(f"{name} ({value}) must be an integer from 1 to {most}")


@contextmanager
def _own_defaults(device: torch.device) -> Iterator[None]:
    """Leaves out what the program around has set in torch, for this thread alone."""
    with torch.device("cpu"), torch.autocast(device.type, enabled=False):
        yield


def _table(embeddings: NDArray[np.float32], errors: Mapping[int, str]) -> pd.DataFrame:
    """One row for each input; objects, so that JSON says null and not NaN."""
    rows = range(len(embeddings))
    vectors = [None if row in errors else embeddings[row].tolist() for row in rows]
    columns = {"embedding": vectors, "error": [errors.get(row) for row in rows]}
    return pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in columns.items()})


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
        One embedding per input (N, D); NaN without a window.
    """
    if not origins:
        return np.zeros((num_inputs, width), np.float32)
    segments, segment_of, num_windows = np.unique(
        np.array(origins), axis=0, return_inverse=True, return_counts=True
    )
    of_segments = np.zeros((len(segments), width))
    np.add.at(of_segments, segment_of.reshape(-1), np.concatenate(embeddings))
    of_segments /= num_windows[:, None]
    num_segments = np.bincount(segments[:, 0], minlength=num_inputs)
    of_inputs = np.zeros((num_inputs, width))
    np.add.at(of_inputs, segments[:, 0], of_segments)
    with np.errstate(invalid="ignore"):
        return (of_inputs / num_segments[:, None]).astype(np.float32)

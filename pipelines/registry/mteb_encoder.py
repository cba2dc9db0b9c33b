"""A registered encoder for mteb, whose tasks compare embeddings of many published models.

    encoder = MtebEncoder("FOLDER")                     # or models:/xkd-video@champion
    mteb.evaluate(encoder, mteb.get_benchmark("MVEB(video, v1)"))

Media of a task are decoded as all media are here: mteb's own decoder and its sampling of frames are
not used, and neither of the two packages that they need is.

Interface: `mteb.models.EncoderProtocol` of mteb 2 (`xkd[mteb]`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import mlflow
import numpy as np
from datasets import Audio, Dataset, Video
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from numpy.typing import NDArray

from pipelines.errors import UserError

Array = NDArray[Any]
_LARGEST_SAMPLE = 32_767


class MtebEncoder(AbsEncoder):
    """Embeds the inputs of tasks of one modality.

    Args:
        model: The folder of a pulled model, or `models:/NAME@ALIAS`.
        name: What mteb calls the model in its results, as `organization/name`.
        chunk_size: Inputs whose media are read at once.
    """

    def __init__(self, model: str, *, name: str | None = None, chunk_size: int = 16) -> None:
        self.model = mlflow.pyfunc.load_model(model)
        metadata = self.model.metadata.metadata
        self.modality: str = metadata["modality"]
        self._chunk_size = chunk_size
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name or f"xkd/{self.modality}",
                "revision": self.model.metadata.model_uuid,
                "embed_dim": metadata["width"],
                "modalities": [self.modality],
                "framework": ["PyTorch"],
                "similarity_fn_name": ScoringFunction.COSINE,
            }
        )

    def encode(self, inputs: Any, *, task_metadata: Any, **_settings: Any) -> NDArray[np.float32]:
        """Embeds the rows of a loader: (rows, D).

        Raises:
            UserError: If the task has inputs of another modality.
        """
        dataset: Dataset = inputs.dataset
        if self.modality not in dataset.column_names:
            raise UserError(
                f"task ({task_metadata.name}) has no {self.modality}, which the encoder takes, "
                f"but {', '.join(dataset.column_names)}"
            )
        chunks = [self.model.predict(rows) for rows in self._chunks(dataset)]
        return np.concatenate(chunks)

    def _chunks(self, dataset: Dataset) -> Iterator[list[dict[str, Any]]]:
        """Yields rows as the model takes them, a few at a time."""
        kind = {"audio": Audio, "video": Video}[self.modality]
        if isinstance(dataset.features[self.modality], kind):
            # The files as they are: the model decodes them.
            dataset = dataset.cast_column(self.modality, kind(decode=False))
        for first in range(0, len(dataset), self._chunk_size):
            rows = dataset[first : first + self._chunk_size][self.modality]
            yield [_input_of(row) for row in rows]


def _input_of(value: Any) -> dict[str, Any]:
    """Returns an input of the model: a file, or decoded sound."""
    if isinstance(value, str):
        return {"path": value}
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        return {"bytes": value["bytes"]}
    if isinstance(value, Mapping) and value.get("path") is not None:
        return {"path": value["path"]}
    if isinstance(value, Mapping) and value.get("array") is not None:
        samples = np.asarray(value["array"], np.float64)
        samples = samples.mean(axis=0) if samples.ndim == 2 else samples
        scaled = np.round(samples.clip(-1, 1) * _LARGEST_SAMPLE).astype(np.int16)
        return {"waveform": scaled, "sample_rate": value["sampling_rate"]}
    raise UserError(f"an input must be a file or decoded sound, not {type(value).__name__}")

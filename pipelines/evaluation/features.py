"""Frozen features of a clip dataset, trained and untrained, and head outputs for retrieval.

`extract` runs as a Ray task, on a GPU if there is one. The feature of a clip is the mean over
evenly spaced windows; it is NaN for a modality that the clip does not have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.config.base import Datasets
from pipelines.config.evaluate import EvaluateSettings
from pipelines.config.pretrain import PretrainConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.joined import open_datasets
from pipelines.evaluation.choice import choose, retrieval_clips
from pipelines.evaluation.embedder import Embedded, Embedder
from pipelines.models.checkpoints import (
    load_model,
)
from pipelines.progress import OnProgress, poster
from pipelines.storage import path_of
from xkd_core.xkd import XKD

Array = NDArray[Any]


@dataclass(frozen=True)
class Features:
    """Features of the clips of the splits in use, in the order of `clip_ids`."""

    clip_ids: tuple[str, ...]
    rows: Array
    """Row of each clip in the dataset."""
    classes: tuple[str, ...]
    labels: Array
    """Index into `classes`, -1 without a label or with several."""
    targets: Array
    """Booleans (clips, classes): the labels of each clip."""
    sources: Array
    """Number of the source of each clip; segments of one source share it."""
    is_train: Array
    is_test: Array
    matrices: Mapping[str, Array]
    """`video/trained`, `audio/untrained`, ...: (clips, D), NaN where a modality is missing."""
    has: Mapping[str, Array]
    """Which clips have a modality, by `video` and `audio`."""
    retrieval_clips: Array
    """Indices of the clips in `retrieval`."""
    retrieval: Mapping[str, Array]
    """Outputs of the projection heads, (clips, K), keyed as `matrices`."""
    layers: Mapping[str, Array] = field(default_factory=dict)
    """Features of the last blocks, concatenated; empty unless `layers` is measured."""
    tokens: Mapping[str, Array] = field(default_factory=dict)
    """Patch tokens (clips, N, D) in float16; empty unless `attentive` is measured."""

    @property
    def is_multilabel(self) -> bool:
        """Whether a clip has several labels."""
        return bool((self.targets.sum(axis=1) > 1).any())

    def of(self, modality: str) -> dict[str, Array]:
        """Returns the matrices of one modality by network."""
        prefix = f"{modality}/"
        return {
            name.removeprefix(prefix): matrix
            for name, matrix in self.matrices.items()
            if name.startswith(prefix)
        }

    def arrays(self) -> dict[str, Array]:
        """Returns everything but the head outputs, for a file that NumPy reads without pickle."""
        return {
            "clip_ids": np.array(self.clip_ids, dtype=np.str_),
            "classes": np.array(self.classes, dtype=np.str_),
            "labels": self.labels,
            "targets": self.targets,
            "sources": self.sources,
            "is_train": self.is_train,
            "is_test": self.is_test,
            **{name.replace("/", "_"): matrix for name, matrix in self.matrices.items()},
        }


def extract(
    checkpoint: str, datasets: Datasets, settings: EvaluateSettings, board: Any
) -> Features:
    """Computes the features of the train and test splits of a dataset."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = {"trained": load_model(path_of(checkpoint))}
    if settings.untrained_baseline:
        networks["untrained"] = load_model(path_of(checkpoint), trained=False)
    for model, _ in networks.values():
        model.to(device)
    return features_of(networks, open_datasets(datasets), settings, poster(board))


@dataclass
class _Gathered:
    """What the networks gave so far, batch by batch."""

    pooled: dict[str, list[Array]] = field(default_factory=dict)
    heads: dict[str, list[Array]] = field(default_factory=dict)
    layers: dict[str, list[Array]] = field(default_factory=dict)
    tokens: dict[str, list[Array]] = field(default_factory=dict)

    def add(self, path: str, found: Embedded, wanted: Array) -> None:
        """Adds a batch; head outputs only of the clips that retrieval wants."""
        self.pooled.setdefault(path, []).append(found.pooled)
        self.heads.setdefault(path, []).append(found.logits[wanted])
        if found.layers is not None:
            self.layers.setdefault(path, []).append(found.layers)
        if found.tokens is not None:
            self.tokens.setdefault(path, []).append(found.tokens)


def _joined(parts: Mapping[str, list[Array]]) -> dict[str, Array]:
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


@torch.no_grad()
def features_of(
    networks: Mapping[str, tuple[XKD, PretrainConfig]],
    dataset: ClipDataset,
    settings: EvaluateSettings,
    post: OnProgress,
    *,
    max_clips: int | None = None,
) -> Features:
    """Computes the features of networks in memory, each on its own device.

    Args:
        networks: Networks and their settings by name.
        dataset: The clips.
        settings: The splits to use, and the windows of a clip.
        post: Called with the progress.
        max_clips: At most so many labelled clips of the train splits and of the test split, evenly
            spaced; by default all clips.
    """
    chosen = choose(dataset, settings, max_clips)
    embedders = {
        name: Embedder(model, config, settings) for name, (model, config) in networks.items()
    }
    gathered = _Gathered()
    in_retrieval = retrieval_clips(dataset, chosen, settings.retrieval_max_clips)
    # Runs once even without a clip, so that the arrays have their shapes.
    for begin in range(0, max(len(chosen.rows), 1), settings.batch_size):
        here = slice(begin, begin + settings.batch_size)
        clips = list(dataset.clips(chosen.rows[here]))
        wanted = np.flatnonzero(in_retrieval[here])
        for network, embedder in embedders.items():
            for modality in ("video", "audio"):
                found = embedder.embed(modality, clips)
                gathered.add(f"{modality}/{network}", found, wanted)
        post(min(begin + settings.batch_size, len(chosen.rows)), len(chosen.rows), "")
    return Features(
        clip_ids=chosen.clip_ids,
        rows=chosen.rows,
        classes=chosen.classes,
        labels=np.where(chosen.targets.sum(axis=1) == 1, chosen.targets.argmax(axis=1), -1)
        if chosen.classes
        else np.full(len(chosen.rows), -1),
        targets=chosen.targets,
        sources=dataset.index.source_number[chosen.rows],
        is_train=chosen.is_train,
        is_test=chosen.is_test,
        matrices=_joined(gathered.pooled),
        has={
            "video": dataset.index.num_frames[chosen.rows] > 0,
            "audio": dataset.index.has_audio[chosen.rows].astype(bool),
        },
        retrieval_clips=np.flatnonzero(in_retrieval),
        retrieval=_joined(gathered.heads),
        layers=_joined(gathered.layers),
        tokens=_joined(gathered.tokens),
    )

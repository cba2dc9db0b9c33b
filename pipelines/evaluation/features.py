"""Frozen features of a clip dataset, trained and untrained, and head outputs for retrieval.

`extract` runs as a Ray task, on a GPU if there is one. The feature of a clip is the mean over
evenly spaced windows; it is NaN for a modality that the clip does not have.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.config.evaluate import EvaluateSettings
from pipelines.config.pretrain import PretrainConfig
from pipelines.dataset.clip_dataset import Clip, ClipDataset
from pipelines.media.windows import audio_windows, video_windows
from pipelines.models.checkpoints import (
    load_model,
)
from pipelines.progress import OnProgress, poster
from pipelines.quantities import counted
from xkd_core.encoders import pool_patches
from xkd_core.views.log_mel import LogMel
from xkd_core.views.video import plain_video_view
from xkd_core.views.views import plain_audio_view
from xkd_core.xkd import XKD

Array = NDArray[Any]
_MAX_RETRIEVAL_CLIPS = 512
"""Held-out clips whose head outputs are kept for retrieval."""


@dataclass(frozen=True)
class Features:
    """Features of the clips of the splits in use, in the order of `clip_ids`."""

    clip_ids: tuple[str, ...]
    rows: Array
    """Row of each clip in the dataset."""
    classes: tuple[str, ...]
    labels: Array
    """Index into `classes`, -1 without a label."""
    is_train: Array
    is_test: Array
    matrices: Mapping[str, Array]
    """`video/trained`, `audio/untrained`, ...: (clips, D), NaN where a modality is missing."""
    retrieval_clips: Array
    """Indices of the clips in `retrieval`."""
    retrieval: Mapping[str, Array]
    """Outputs of the projection heads, (clips, K), keyed as `matrices`."""

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
            "is_train": self.is_train,
            "is_test": self.is_test,
            **{name.replace("/", "_"): matrix for name, matrix in self.matrices.items()},
        }


def extract(checkpoint: str, dataset_path: str, settings: EvaluateSettings, board: Any) -> Features:
    """Computes the features of the train and test splits of a dataset."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = {"trained": load_model(Path(checkpoint))}
    if settings.untrained_baseline:
        networks["untrained"] = load_model(Path(checkpoint), trained=False)
    for model, _ in networks.values():
        model.to(device)
    return features_of(networks, ClipDataset.open(dataset_path), settings, poster(board))


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
    chosen = _choose(dataset, settings, max_clips)
    embedders = {
        name: _Embedder(model, config, settings) for name, (model, config) in networks.items()
    }
    parts: dict[str, list[Array]] = {}
    heads: dict[str, list[Array]] = {}
    in_retrieval = _retrieval_clips(dataset, chosen)
    # Runs once even without a clip, so that the arrays have their shapes.
    for begin in range(0, max(len(chosen.rows), 1), settings.batch_size):
        here = slice(begin, begin + settings.batch_size)
        clips = list(dataset.clips(chosen.rows[here]))
        wanted = np.flatnonzero(in_retrieval[here])
        for network, embedder in embedders.items():
            for modality in ("video", "audio"):
                features, logits = embedder.embed(modality, clips)
                parts.setdefault(f"{modality}/{network}", []).append(features)
                heads.setdefault(f"{modality}/{network}", []).append(logits[wanted])
        post(min(begin + settings.batch_size, len(chosen.rows)), len(chosen.rows), "")
    return Features(
        clip_ids=chosen.clip_ids,
        rows=chosen.rows,
        classes=chosen.classes,
        labels=chosen.labels,
        is_train=chosen.is_train,
        is_test=chosen.is_test,
        matrices={name: np.concatenate(arrays) for name, arrays in parts.items()},
        retrieval_clips=np.flatnonzero(in_retrieval),
        retrieval={name: np.concatenate(arrays) for name, arrays in heads.items()},
    )


@dataclass(frozen=True)
class _Chosen:
    rows: Array
    clip_ids: tuple[str, ...]
    classes: tuple[str, ...]
    labels: Array
    is_train: Array
    is_test: Array


def split_scored_on(dataset: ClipDataset, settings: EvaluateSettings) -> str | None:
    """Returns the first of the test splits that the dataset has; None if it has none."""
    there = set(dataset.index.split.tolist())
    return next((name for name in settings.test_splits if name in there), None)


def unscorable(dataset: ClipDataset, settings: EvaluateSettings, modality: str) -> str:
    """Returns why a dataset gives no score for a modality; empty if it does."""
    index = dataset.index
    has_modality = index.has_audio if modality == "audio" else index.num_frames > 0

    def labels_in(*splits: str) -> set[str]:
        there = index.label[has_modality & np.isin(index.split, splits)]
        return {str(name) for name in there if name}

    classes = labels_in(*settings.train_splits)
    if len(classes) < 2:
        splits = ", ".join(settings.train_splits)
        there = counted(len(classes), "class", "classes")
        return f"split {splits} has labelled clips of {there}, and at least 2 are needed"
    scored_on = split_scored_on(dataset, settings)
    if scored_on is None:
        return f"there is no split {' or '.join(settings.test_splits)}"
    if not labels_in(scored_on):
        return f"split {scored_on}, the first that is there, has no labelled clip"
    return ""


def _choose(dataset: ClipDataset, settings: EvaluateSettings, max_clips: int | None) -> _Chosen:
    """Chooses the rows of the train splits and of the first test split of the dataset."""
    split, label = dataset.index.split, dataset.index.label
    test_split = split_scored_on(dataset, settings)
    is_train, is_test = np.isin(split, settings.train_splits), split == test_split
    if max_clips is not None:
        is_train, is_test = (
            _spread(side & (label != ""), max_clips) for side in (is_train, is_test)
        )
    rows = np.flatnonzero(is_train | is_test)
    classes = tuple(sorted({str(name) for name in label[rows] if name}))
    number = {name: index for index, name in enumerate(classes)}
    return _Chosen(
        rows=rows,
        clip_ids=tuple(str(name) for name in dataset.index.clip_id[rows]),
        classes=classes,
        labels=np.array([number.get(str(name), -1) for name in label[rows]], dtype=np.int64),
        is_train=is_train[rows],
        is_test=is_test[rows],
    )


def _spread(marks: Array, most: int) -> Array:
    """Keeps at most `most` marks, evenly spaced."""
    marked = np.flatnonzero(marks)
    kept = np.zeros_like(marks)
    kept[marked[np.linspace(0, len(marked) - 1, min(most, len(marked))).astype(int)]] = True
    return kept


def _retrieval_clips(dataset: ClipDataset, chosen: _Chosen) -> Array:
    """Marks the first held-out clips with both modalities, or training clips without those."""
    index = dataset.index
    both = (index.num_frames[chosen.rows] > 0) & index.has_audio[chosen.rows]
    candidates = np.flatnonzero(both & (chosen.is_test if chosen.is_test.any() else True))
    marked = np.zeros(len(chosen.rows), dtype=bool)
    marked[candidates[:_MAX_RETRIEVAL_CLIPS]] = True
    return marked


class _Embedder:
    """Applies one network to the windows of an evaluation."""

    def __init__(self, model: XKD, config: PretrainConfig, settings: EvaluateSettings) -> None:
        self._model, self._config, self._settings = model, config, settings
        self._device = next(model.parameters()).device
        self._log_mel = LogMel(config.model.audio).to(self._device)

    def embed(self, modality: str, clips: Sequence[Clip]) -> tuple[Array, Array]:
        """Returns features (clips, D) and head outputs (clips, K), NaN without the modality."""
        windows, owners = self._windows(modality, clips)
        features = np.full((len(clips), self._config.model.encoder.width), np.nan, np.float32)
        logits = np.full((len(clips), self._config.model.head.output_width), np.nan, np.float32)
        if not windows:
            return features, logits
        encoder = getattr(self._model, f"{modality}_{self._settings.role}")
        head = getattr(self._model, f"{modality}_{self._settings.role}_head")
        pooled = torch.cat(
            [
                pool_patches(encoder(self._view(modality, windows[begin : begin + len(clips)])))
                for begin in range(0, len(windows), len(clips))
            ]
        )
        counts = Counter(owners)  # windows lie clip by clip
        for clip, mine in zip(counts, torch.split(pooled, list(counts.values())), strict=True):
            features[clip] = mine.mean(dim=0).cpu().numpy()
            logits[clip] = head(mine).mean(dim=0).cpu().numpy()
        return features, logits

    def _windows(self, modality: str, clips: Sequence[Clip]) -> tuple[list[Array], list[int]]:
        windows: list[Array] = []
        owners: list[int] = []
        for owner, clip in enumerate(clips):
            found: list[Array] = []
            if modality == "video" and clip.frames is not None:
                length = self._config.model.video.num_frames
                found = list(video_windows(clip.frames, length, self._settings.num_windows))
            if modality == "audio" and clip.waveform is not None:
                length = self._config.model.audio.num_samples
                found = list(audio_windows(clip.waveform, length, self._settings.num_windows))
            windows += found
            owners += [owner] * len(found)
        return windows, owners

    def _view(self, modality: str, windows: Sequence[Array]) -> torch.Tensor:
        if modality == "audio":
            waveform = torch.from_numpy(np.stack(windows)).to(self._device)
            return plain_audio_view(waveform, self._log_mel)
        frames, heights, widths = padded_frames(windows)
        return plain_video_view(
            frames.to(self._device),
            heights.to(self._device),
            widths.to(self._device),
            self._config.model.video.size,
        )


def padded_frames(
    windows: Sequence[Array],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Stacks videos (T, H, W, 3) of different sizes; returns their heights and widths too."""
    heights = [window.shape[1] for window in windows]
    widths = [window.shape[2] for window in windows]
    stacked = np.zeros((len(windows), len(windows[0]), max(heights), max(widths), 3), np.uint8)
    for i, window in enumerate(windows):
        stacked[i, :, : heights[i], : widths[i]] = window
    return torch.from_numpy(stacked), torch.tensor(heights), torch.tensor(widths)

"""Applies one encoder to clips: pooled features, head outputs, layers and tokens of its views."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.config.evaluate import EvaluateSettings
from pipelines.dataset.clip_dataset import Clip
from pipelines.evaluation.networks import EvaluatedEncoder
from pipelines.media.windows import audio_windows, video_windows
from xkd_core.encoders import Modality, pool_patches
from xkd_core.views.log_mel import LogMel
from xkd_core.views.video import plain_video_view
from xkd_core.views.views import plain_audio_view

Array = NDArray[Any]


@dataclass(frozen=True)
class Embedded:
    """What an encoder gives for the views of clips: each crop of each window, clip by clip."""

    owners: Array
    """Clip of each view; a clip without the modality has none."""
    pooled: Array
    """(views, D)"""
    layers: Array | None
    """(views, layers x D)"""
    logits: Array | None
    """Mean of the head's outputs over the views, (clips, K), NaN for clips without any."""
    tokens: Array | None
    """Tokens of all windows, (clips, N, D) in float16."""


class Embedder:
    """Applies one encoder to the windows and crops of an evaluation."""

    def __init__(
        self, modality: Modality, evaluated: EvaluatedEncoder, settings: EvaluateSettings
    ) -> None:
        self._modality, self._settings = modality, settings
        self._encoder, self._head = evaluated.encoder, evaluated.head
        self._config = evaluated.model
        self._device = next(self._encoder.parameters()).device
        self._log_mel = LogMel(self._config.audio).to(self._device)
        self._size = settings.video_size or self._config.video.size

    @torch.no_grad()
    def embed(self, clips: Sequence[Clip]) -> Embedded:
        """Embeds clips."""
        windows, owners = self._windows(clips)
        width = self._config.encoder.width
        num_layers = min(self._settings.num_layers, self._config.encoder.depth)
        found = [
            self._outputs(view, rows)
            for begin in range(0, len(windows), max(1, len(clips)))
            for view, rows in self._views(windows, owners, slice(begin, begin + len(clips)))
        ]
        unsorted = np.concatenate([rows for _, rows in found] or [np.zeros(0)]).astype(int)
        order = np.argsort(unsorted, kind="stable")
        view_owners = unsorted[order]

        def joined(number: int, shape: tuple[int, ...]) -> Array:
            parts = [outputs[number] for outputs, _ in found] or [np.zeros((0, *shape), np.float32)]
            return np.concatenate(parts)[order]

        pooled = joined(0, (width,))
        layers = joined(1, (num_layers * width,)) if "layers" in self._settings.measures else None
        tokens = None
        if "attentive" in self._settings.measures:
            tokens = self._tokens(joined(2, (0, width)), view_owners, len(clips))
        return Embedded(
            view_owners, pooled, layers, self._logits(pooled, view_owners, len(clips)), tokens
        )

    def _logits(self, pooled: Array, owners: Array, num_clips: int) -> Array | None:
        if self._head is None or "retrieval" not in self._settings.measures:
            return None
        views = self._head(torch.from_numpy(pooled).to(self._device)).cpu().numpy()
        return mean_by(views, owners, num_clips)

    def _tokens(self, patches: Array, owners: Array, num_clips: int) -> Array:
        """Puts the tokens of the views of each clip one after another, repeated if there are few.

        A segment that is too short has fewer windows, a square picture fewer crops.
        """
        settings, is_video = self._settings, self._modality == "video"
        most = settings.num_windows * (settings.num_crops if is_video else 1)
        grid = list(getattr(self._config, self._modality).grid)
        if is_video:
            grid[1:] = [self._size // self._config.video.patch_size] * 2
        tokens = np.zeros(
            (num_clips, most * math.prod(grid), self._config.encoder.width), np.float16
        )
        for clip in np.unique(owners):
            tokens[clip] = np.resize(patches[owners == clip], tokens[clip].shape)
        return tokens

    def _windows(self, clips: Sequence[Clip]) -> tuple[list[Array], list[int]]:
        windows: list[Array] = []
        owners: list[int] = []
        for owner, clip in enumerate(clips):
            found: list[Array] = []
            if self._modality == "video" and clip.frames is not None:
                length = self._config.video.num_frames
                found = list(video_windows(clip.frames, length, self._settings.num_windows))
            if self._modality == "audio" and clip.waveform is not None:
                length = self._config.audio.num_samples
                found = list(audio_windows(clip.waveform, length, self._settings.num_windows))
            windows += found
            owners += [owner] * len(found)
        return windows, owners

    def _views(
        self, windows: Sequence[Array], owners: Sequence[int], part: slice
    ) -> Iterator[tuple[torch.Tensor, Array]]:
        """Yields the views of some windows, crop by crop, with the clip of each."""
        here, rows = windows[part], np.array(owners[part])
        if self._modality == "audio":
            waveform = torch.from_numpy(np.stack(here)).to(self._device)
            yield plain_audio_view(waveform, self._log_mel), rows
            return
        frames, heights, widths = (tensor.to(self._device) for tensor in padded_frames(here))
        count = self._settings.num_crops
        for number in range(count):
            # The crops of a square would be the same one.
            kept = np.flatnonzero((heights != widths).cpu().numpy() | (number == 0))
            if len(kept):
                sides = (frames[kept], heights[kept], widths[kept])
                yield plain_video_view(*sides, self._size, (number, count)), rows[kept]

    def _outputs(self, view: torch.Tensor, rows: Array) -> tuple[tuple[Array, Array, Array], Array]:
        """Returns pooled features, those of the last blocks, and tokens, empty if not measured."""
        measures = self._settings.measures
        if "layers" in measures:
            by_block = self._encoder.last_blocks(view, self._settings.num_layers)
            tokens = by_block[-1]
            layers = torch.cat([pool_patches(block) for block in by_block], dim=1)
        else:
            tokens = self._encoder(view)
            layers = tokens.new_zeros(len(tokens), 0)
        kept = tokens[:, 1:].half() if "attentive" in measures else tokens[:, :0].half()
        found = tuple(one.cpu().numpy() for one in (pool_patches(tokens), layers, kept))
        return found, rows  # type: ignore[return-value]  # mypy does not count the generator


def mean_by(rows: Array, owners: Array, num_owners: int) -> Array:
    """Averages the rows of each owner in float64; NaN for an owner without rows.

    >>> mean_by(np.array([[1.0], [3.0], [5.0]]), np.array([0, 0, 2]), 3).ravel().tolist()
    [2.0, nan, 5.0]
    """
    sums = np.zeros((num_owners, rows.shape[1]))
    np.add.at(sums, owners, rows)
    with np.errstate(invalid="ignore"):
        means: Array = sums / np.bincount(owners, minlength=num_owners)[:, None]
    return means.astype(rows.dtype)


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

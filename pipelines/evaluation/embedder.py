"""Applies one network to clips: pooled features, head outputs, layers and tokens."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.config.evaluate import EvaluateSettings
from pipelines.config.pretrain import PretrainConfig
from pipelines.dataset.clip_dataset import Clip
from pipelines.media.windows import audio_windows, video_windows
from xkd_core.encoders import Encoder, pool_patches
from xkd_core.views.log_mel import LogMel
from xkd_core.views.video import plain_video_view
from xkd_core.views.views import plain_audio_view
from xkd_core.xkd import XKD

Array = NDArray[Any]


@dataclass(frozen=True)
class _Embedded:
    """What a network gives for clips, NaN for those without the modality."""

    pooled: Array
    logits: Array
    layers: Array | None
    tokens: Array | None


class Embedder:
    """Applies one network to the windows of an evaluation."""

    def __init__(self, model: XKD, config: PretrainConfig, settings: EvaluateSettings) -> None:
        self._model, self._config, self._settings = model, config, settings
        self._device = next(model.parameters()).device
        self._log_mel = LogMel(config.model.audio).to(self._device)

    def embed(self, modality: str, clips: Sequence[Clip]) -> _Embedded:
        """Embeds clips: mean over windows, and the tokens of all windows."""
        windows, owners = self._windows(modality, clips)
        config, settings = self._config.model, self._settings
        width, num_clips = config.encoder.width, len(clips)
        num_layers = min(settings.num_layers, config.encoder.depth)
        num_tokens = settings.num_windows * math.prod(getattr(config, modality).grid)
        features = np.full((num_clips, width), np.nan, np.float32)
        logits = np.full((num_clips, config.head.output_width), np.nan, np.float32)
        layers = tokens = None
        if "layers" in settings.measures:
            layers = np.full((num_clips, num_layers * width), np.nan, np.float32)
        if "attentive" in settings.measures:
            tokens = np.zeros((num_clips, num_tokens, width), np.float16)
        if not windows:
            return _Embedded(features, logits, layers, tokens)
        encoder = getattr(self._model, f"{modality}_{settings.role}")
        head = getattr(self._model, f"{modality}_{settings.role}_head")
        found = [
            _outputs(encoder, self._view(modality, windows[begin : begin + num_clips]), settings)
            for begin in range(0, len(windows), num_clips)
        ]
        counts = Counter(owners)  # windows lie clip by clip
        sizes = list(counts.values())
        pooled, by_layer, patches = (torch.cat(parts) for parts in zip(*found, strict=True))
        for number, clip in enumerate(counts):
            first = sum(sizes[:number])
            mine = slice(first, first + sizes[number])
            features[clip] = pooled[mine].mean(dim=0).cpu().numpy()
            logits[clip] = head(pooled[mine]).mean(dim=0).cpu().numpy()
            if layers is not None:
                layers[clip] = by_layer[mine].mean(dim=0).cpu().numpy()
            if tokens is not None:
                tokens[clip] = np.resize(patches[mine].cpu().numpy(), tokens[clip].shape)
        return _Embedded(features, logits, layers, tokens)

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


def _outputs(
    encoder: Encoder, view: torch.Tensor, settings: EvaluateSettings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns pooled features, those of the last blocks, and tokens; empty what is not measured."""
    if "layers" in settings.measures:
        by_block = encoder.last_blocks(view, settings.num_layers)
        tokens = by_block[-1]
        layers = torch.cat([pool_patches(block) for block in by_block], dim=1)
    else:
        tokens = encoder(view)
        layers = tokens.new_zeros(len(tokens), 0)
    kept = tokens[:, 1:].half() if "attentive" in settings.measures else tokens[:, :0].half()
    return pool_patches(tokens), layers, kept


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

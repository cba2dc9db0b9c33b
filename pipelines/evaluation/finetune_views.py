"""Plain and augmented views of labelled clips, for fine-tuning.

Random numbers of a clip follow from (seed, epoch, clip); those of a batch come from a generator.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

from pipelines.config.evaluate import EvaluateSettings
from pipelines.dataset.clip_dataset import Clip, ClipDataset
from pipelines.evaluation.networks import EvaluatedEncoder
from pipelines.media.windows import looped, padded
from xkd_core.classifiers.finetune import erase
from xkd_core.classifiers.spectrograms import mask_spectrogram, random_crops, warp_time
from xkd_core.encoders import Modality
from xkd_core.views.log_mel import LogMel
from xkd_core.views.video import normalize_video
from xkd_core.views.views import plain_audio_view

Array = NDArray[Any]
_LARGEST_PIXEL = 255.0
_MAGNITUDE_DEVIATION = 0.5


class FineTuneViews:
    """Clips of the dataset, plain or augmented; kept in memory while there is room."""

    def __init__(
        self,
        modality: Modality,
        evaluated: EvaluatedEncoder,
        dataset: ClipDataset,
        settings: EvaluateSettings,
    ) -> None:
        self.modality, self._model, self._dataset = modality, evaluated.model, dataset
        self._recipe, self._seed = settings.finetune, settings.seed
        self._size = settings.video_size or evaluated.model.video.size
        self._log_mel = LogMel(evaluated.model.audio)
        self._room = int(self._recipe.clips_gb * 1e9)
        self._kept: dict[int, Clip] = {}
        # A box cut out of a spectrogram is another sound's pitch at another time.
        self.cutmix = self._recipe.cutmix if modality == "video" else 0.0

    def clips(self, rows: Array) -> list[Clip]:
        """Returns clips in the order of the rows, with the stream of the modality alone."""
        missing = sorted(row for row in set(rows.tolist()) if row not in self._kept)
        here: dict[int, Clip] = {}
        for row, clip in zip(missing, self._dataset.clips(missing), strict=True):
            if self.modality == "video":
                here[row] = replace(clip, waveform=None)
            else:
                here[row] = replace(clip, frames=None)
            size = sum(a.nbytes for a in (here[row].frames, here[row].waveform) if a is not None)
            if size <= self._room:
                self._room -= size
                self._kept[row] = here[row]
        return [here.get(row) or self._kept[row] for row in rows.tolist()]

    def augmented(self, rows: Array, epoch: int, generator: torch.Generator) -> torch.Tensor:
        """Computes one random view of each clip."""
        view = self._video if self.modality == "video" else self._audio
        seeds = [(self._seed * 1_000_003 + epoch) * 1_000_003 + int(row) for row in rows]
        views = []
        for clip, seed in zip(self.clips(rows), seeds, strict=True):
            with seeded(seed % (1 << 63)):
                views.append(view(clip))
        batch = torch.stack(views)
        if self.modality == "video":
            return erase(batch, self._recipe.erasing, generator)
        batch = warp_time(batch, self._recipe.time_warp, generator)
        batch = mask_spectrogram(
            batch, num_masks=2, max_bins=10, max_frames=20, generator=generator
        )
        crop = self._recipe.audio_crop
        return batch if crop is None else random_crops(batch, crop, generator)

    def _video(self, clip: Clip) -> torch.Tensor:
        """RandAugment on the stored frames, then a random crop and a flip; (3, T, H, W)."""
        assert clip.frames is not None
        frames, recipe = _window(clip.frames, self._model.video.num_frames, looped), self._recipe
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        pixels = _rand_augment(pixels, recipe.randaugment_operations, recipe.randaugment_magnitude)
        pixels = v2.RandomResizedCrop(self._size, scale=recipe.crop_area, antialias=True)(pixels)
        pixels = v2.RandomHorizontalFlip(0.5 if recipe.flip else 0.0)(pixels)
        return normalize_video(pixels.permute(1, 0, 2, 3).float() / _LARGEST_PIXEL)

    def _audio(self, clip: Clip) -> torch.Tensor:
        """A random window at random volume, as a spectrogram; (1, M, T)."""
        assert clip.waveform is not None
        samples = _window(clip.waveform, self._model.audio.num_samples, padded)
        volume = 1 + self._recipe.volume * (2 * float(torch.rand(1)) - 1)
        louder = np.clip(samples * volume, -32768, 32767).astype(np.int16)
        return plain_audio_view(torch.from_numpy(louder)[None], self._log_mel)[0]


def _rand_augment(pixels: torch.Tensor, operations: int, magnitude: int) -> torch.Tensor:
    """Applies each operation to half of the clips, with about the magnitude, as timm does.

    torchvision counts magnitudes to 30 and applies every operation; timm, whose numbers papers
    name, counts to 10.
    """
    for _ in range(operations):
        if float(torch.rand(())) < 0.5:
            drawn = magnitude + _MAGNITUDE_DEVIATION * float(torch.randn(()))
            level = round(3 * min(max(drawn, 0.0), 10.0))
            pixels = v2.RandAugment(num_ops=1, magnitude=level)(pixels)
    return pixels


def _window(array: Array, length: int, extend: Callable[[Array, int], Array]) -> Array:
    if len(array) <= length:
        return extend(array, length)
    start = int(torch.randint(0, len(array) - length + 1, (1,)))
    return array[start : start + length]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Lets a library draw from PyTorch's global generator without leaving a trace."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield

"""Random parameters of views, drawn on the CPU before any pixel is processed.

Each clip has a generator of its own, keyed by seed, epoch and clip id. A view therefore depends
neither on the other clips of the batch nor on the number of workers. One call draws all uniform
numbers of a clip; formulas on whole batches turn them into parameters:

    clip a | u u u u u u ... |  --> start  crop_area  crop_ratio  ...  mask noise    one row a clip
    clip b | u u u u u u ... |

Paper: XKD, section 4; crops of audio as in BYOL-A, arXiv:2103.06695.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from xkd_core.config import AudioConfig, MethodConfig, Range, VideoConfig, ViewsConfig
from xkd_core.masking import video_mask_noise
from xkd_core.shapes import Bool, Float, Int, Tensor

_CROP_TRIES = 10
_BLUR_SIGMA = Range(low=0.1, high=2.0)
_PUBLISHED_BLUR_SIGMA = (2.0, 0.1)
"""Vertical and horizontal sigma of every blurred view if `local_blur_sigma` is "fixed"."""
_LOCAL_AUDIO_STEP = 100
"""Step in samples between possible starts of a local audio window."""

# Uniform numbers of one view. All of them are drawn whatever the settings are, so that changing a
# probability or a range leaves all other draws as they are.
_VIDEO_NUMBERS = 1 + 2 * _CROP_TRIES + 2 + 1 + 4 + 4 + 1 + 2
_AUDIO_NUMBERS = 1 + 1 + 2 + 2


class VideoViewParameters(NamedTuple):
    """Parameters of one video view of each clip; they are the same for all frames."""

    start: Int[Tensor, " B"]
    """First frame."""
    crop_area: Float[Tensor, "B tries"]
    """Proposed shares of the frame's area; the first one that fits is used."""
    crop_ratio: Float[Tensor, "B tries"]
    """Proposed widths over heights."""
    crop_position: Float[Tensor, "B 2"]
    """Row and column of the crop as a share of the free space, in [0, 1)."""
    flip: Bool[Tensor, " B"]
    color_factors: Float[Tensor, "B 4"]
    """Factors of brightness, contrast and saturation, then the shift of the hue."""
    color_order: Int[Tensor, "B 4"]
    """Which of the four comes first, second, third and last."""
    gray: Bool[Tensor, " B"]
    blur_sigma: Float[Tensor, "B 2"]
    """Vertical and horizontal sigma of the blur in pixels; 0 without blur."""


class AudioViewParameters(NamedTuple):
    """Parameters of one audio view of each clip."""

    start: Int[Tensor, " B"]
    """First sample."""
    volume: Float[Tensor, " B"]
    crop_size: Float[Tensor, "B 2"]
    """Height and width of the crop as shares of the spectrogram; only local views are cropped."""
    crop_position: Float[Tensor, "B 2"]
    """Row and column of the crop as a share of the free space, in [0, 1)."""


class ViewParameters(NamedTuple):
    """All random parameters of the views of a batch, one row a clip, on the CPU."""

    video_globals: tuple[VideoViewParameters, ...]
    video_locals: tuple[VideoViewParameters, ...]
    audio_globals: tuple[AudioViewParameters, ...]
    audio_locals: tuple[AudioViewParameters, ...]
    video_mask_noise: Float[Tensor, "GB_video N_video"]
    """Noise of the first global view of all clips, then of the second."""
    audio_mask_noise: Float[Tensor, "GB_audio N_audio"]


def clip_generator(
    seed: int, epoch: int, clip_id: str, purpose: str = "views"
) -> np.random.Generator:
    """Returns the generator of a clip in an epoch; another `purpose` gives independent numbers."""
    name = json.dumps([seed, epoch, clip_id, purpose])
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def draw_view_parameters(
    clip_ids: Sequence[str], epochs: Sequence[int], seed: int, config: MethodConfig
) -> ViewParameters:
    """Draws the parameters of all views of a batch; each row depends only on its clip.

    Raises:
        ValueError: If the numbers of clips and epochs differ.
    """
    if len(clip_ids) != len(epochs):
        raise ValueError(
            f"epochs ({len(epochs)} of them) must be as many as clip_ids ({len(clip_ids)})"
        )
    views, video, audio = config.views, config.model.video, config.model.audio
    count = (
        (views.num_video_globals + views.num_video_locals) * _VIDEO_NUMBERS
        + (views.num_audio_globals + views.num_audio_locals) * _AUDIO_NUMBERS
        + views.num_video_globals * video.num_tokens
        + views.num_audio_globals * audio.num_tokens
    )
    rows = np.empty((len(clip_ids), count))
    for row, clip_id, epoch in zip(rows, clip_ids, epochs, strict=True):
        clip_generator(seed, epoch, clip_id).random(out=row)
    uniforms = _Uniforms(torch.from_numpy(rows))
    video_globals = [_global_video(uniforms, views)]
    video_locals = [_local_video(uniforms, views, video) for _ in range(views.num_video_locals)]
    audio_globals = [_global_audio(uniforms, views)]
    audio_locals = [_local_audio(uniforms, views, audio) for _ in range(views.num_audio_locals)]
    video_noise = [uniforms.take(video.num_tokens)]
    audio_noise = [uniforms.take(audio.num_tokens)]
    # Drawn last, so that more global views leave all other draws as they are.
    for _ in range(1, views.num_video_globals):
        video_globals.append(_global_video(uniforms, views))
        video_noise.append(uniforms.take(video.num_tokens))
    for _ in range(1, views.num_audio_globals):
        audio_globals.append(_global_audio(uniforms, views))
        audio_noise.append(uniforms.take(audio.num_tokens))
    return ViewParameters(
        tuple(video_globals),
        tuple(video_locals),
        tuple(audio_globals),
        tuple(audio_locals),
        video_mask_noise(torch.cat(video_noise).float(), video),
        torch.cat(audio_noise).float(),
    )


def integer_offset(position: Float[Tensor, "*B"], room: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
    """Maps positions in [0, 1) to equally likely integers from 0 to `room`."""
    return (position * (room + 1)).long()


class _Uniforms:
    """A table of uniform numbers, one row a clip, whose columns are consumed from left to right."""

    def __init__(self, table: Tensor) -> None:
        self._table = table
        self._taken = 0

    def take(self, count: int) -> Tensor:
        columns = self._table[:, self._taken : self._taken + count]
        self._taken += count
        return columns

    def take_one(self) -> Tensor:
        return self.take(1)[:, 0]


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _integer_below(uniform: Tensor, count: int) -> Tensor:
    return (uniform * count).long()


def _global_video(uniforms: _Uniforms, views: ViewsConfig) -> VideoViewParameters:
    view = _video(uniforms, views, views.global_crop_area, num_starts=1)
    return view._replace(
        gray=torch.zeros_like(view.gray), blur_sigma=torch.zeros_like(view.blur_sigma)
    )


def _local_video(
    uniforms: _Uniforms, views: ViewsConfig, video: VideoConfig
) -> VideoViewParameters:
    num_starts = video.num_frames - video.local_num_frames + 1
    return _video(uniforms, views, views.local_crop_area, num_starts=num_starts)


def _video(
    uniforms: _Uniforms, views: ViewsConfig, area: Range, *, num_starts: int
) -> VideoViewParameters:
    ratio = views.crop_ratio
    return VideoViewParameters(
        start=_integer_below(uniforms.take_one(), num_starts),
        crop_area=_between(uniforms.take(_CROP_TRIES), area.low, area.high),
        crop_ratio=_between(
            uniforms.take(_CROP_TRIES), math.log(ratio.low), math.log(ratio.high)
        ).exp(),
        crop_position=uniforms.take(2),
        flip=uniforms.take_one() < views.flip_probability,
        color_factors=_color_factors(uniforms.take(4), views),
        color_order=uniforms.take(4).argsort(dim=1),
        gray=uniforms.take_one() < views.local_gray_probability,
        blur_sigma=_blur_sigma(uniforms, views),
    )


def _color_factors(uniform: Tensor, views: ViewsConfig) -> Tensor:
    jitter = (views.brightness, views.contrast, views.saturation)
    ranges = [(max(0.0, 1.0 - strength), 1.0 + strength) for strength in jitter]
    ranges.append((-views.hue, views.hue))
    low, high = torch.tensor(ranges, dtype=uniform.dtype).unbind(dim=1)
    return low + (high - low) * uniform


def _blur_sigma(uniforms: _Uniforms, views: ViewsConfig) -> Tensor:
    blurred = uniforms.take_one() < views.local_blur_probability
    drawn = _between(uniforms.take_one(), _BLUR_SIGMA.low, _BLUR_SIGMA.high)
    if views.local_blur_sigma == "fixed":
        sigma = drawn.new_tensor(_PUBLISHED_BLUR_SIGMA).expand(len(drawn), 2)
    else:
        sigma = drawn.unsqueeze(1).expand(-1, 2)
    return sigma * blurred.unsqueeze(1)


def _global_audio(uniforms: _Uniforms, views: ViewsConfig) -> AudioViewParameters:
    return _audio(uniforms, views, volume=views.global_volume, num_starts=1)


def _local_audio(
    uniforms: _Uniforms, views: ViewsConfig, audio: AudioConfig
) -> AudioViewParameters:
    num_starts = (audio.num_samples - audio.local_num_samples) // _LOCAL_AUDIO_STEP + 1
    return _audio(uniforms, views, volume=views.local_volume, num_starts=num_starts)


def _audio(
    uniforms: _Uniforms, views: ViewsConfig, *, volume: float, num_starts: int
) -> AudioViewParameters:
    crop = views.local_audio_crop
    return AudioViewParameters(
        start=_integer_below(uniforms.take_one(), num_starts) * _LOCAL_AUDIO_STEP,
        volume=_between(uniforms.take_one(), 1.0 - volume, 1.0 + volume),
        crop_size=_between(uniforms.take(2), crop.low, crop.high),
        crop_position=uniforms.take(2),
    )

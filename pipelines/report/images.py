"""Images of the pages: frames, spectrograms and attention as data URIs.

Frames are uint8 (T, H, W, 3) and spectrograms float (mel bins, time). Values per token come as a
grid of tokens, (t, h, w) or (frequency, time), and are expanded to pixels here.
"""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.media.windows import evenly_spaced

Array = NDArray[Any]

_MAX_FRAMES = 8
"""Frames of a clip that a page shows."""
MIN_PIXELS, MAX_PIXELS = 112, 224
"""Smaller frames are enlarged by an integer factor, larger ones are reduced."""

_HIDDEN_INDEX = 255
_HIDDEN_RGB = (128, 134, 142)


def frame_images(frames: Array) -> list[str]:
    """Returns data URIs of at most eight frames of (T, H, W, 3), evenly spaced."""
    chosen = frames[evenly_spaced(len(frames), _MAX_FRAMES)]
    return [_jpeg(frame) for frame in chosen]


def frame_image(frame: Array) -> str:
    """Returns the data URI of one frame (H, W, 3)."""
    return _jpeg(frame)


def hide_frames(frames: Array, hidden: Array) -> Array:
    """Grays the parts of frames (T, H, W, 3) that a grid (t, h, w) of booleans hides."""
    shown = frames.copy()
    shown[_token_pixels(hidden, frames.shape[:3])] = _HIDDEN_RGB
    return shown


def fill_hidden(original: Array, hidden: Array, filled: Array) -> Array:
    """Takes the hidden parts of frames or spectrograms from `filled`, the rest from `original`."""
    mask = _token_pixels(hidden, original.shape[: hidden.ndim])
    return np.where(mask[..., None] if original.ndim > mask.ndim else mask, filled, original)


def _token_pixels(tokens: Array, shape: Sequence[int]) -> Array:
    """Expands a grid of tokens to pixels: each pixel gets the value of its token.

    >>> _token_pixels(np.array([[1, 2]]), (2, 4)).tolist()
    [[1, 1, 2, 2], [1, 1, 2, 2]]
    """
    for axis, size in enumerate(shape):
        cells = np.arange(size) * tokens.shape[axis] // size
        tokens = tokens.take(cells, axis=axis)
    return tokens


def spectrogram_image(
    spectrogram: Array, hidden: Array | None = None, limits: tuple[float, float] | None = None
) -> str:
    """Returns the data URI of a spectrogram (mel bins, time), low frequencies at the bottom."""
    low, high = limits or value_limits(spectrogram)
    share = (np.nan_to_num(spectrogram) - low) / (high - low)
    levels = np.round(np.clip(share, 0.0, 1.0) * (_HIDDEN_INDEX - 1)).astype(np.uint8)
    if hidden is not None:
        levels[_token_pixels(hidden, levels.shape)] = _HIDDEN_INDEX
    image = Image.fromarray(np.ascontiguousarray(levels[::-1]), mode="P")
    palette = (matplotlib.colormaps["magma"](np.linspace(0, 1, 255))[:, :3] * 255).astype(np.uint8)
    image.putpalette([*palette.ravel().tolist(), *_HIDDEN_RGB])
    return _data_uri(image, "PNG")


def value_limits(values: Array) -> tuple[float, float]:
    """Returns the 1st and the 99th percentile of the finite values."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = (float(edge) for edge in np.percentile(finite, [1, 99]))
    return low, max(high, low + 1e-6)


def attention_frames(frames: Array, attention: Array) -> list[str]:
    """Overlays frames (T, H, W, 3) with a heat map of attention per token (t, h, w)."""
    heat = _relative(attention)
    chosen = evenly_spaced(len(frames), _MAX_FRAMES)
    moments = chosen * attention.shape[0] // len(frames)
    return [_jpeg(_heated(frames[i], heat[j])) for i, j in zip(chosen, moments, strict=True)]


def attention_spectrogram(spectrogram: Array, attention: Array) -> str:
    """Overlays a spectrogram with a heat map of attention per token (frequency, time)."""
    low, high = value_limits(spectrogram)
    gray = np.clip((np.nan_to_num(spectrogram) - low) / (high - low), 0.0, 1.0) * 255.0
    image = np.repeat(gray[..., None], 3, axis=-1).astype(np.uint8)
    return _jpeg(_heated(image, _relative(attention))[::-1])


def _relative(attention: Array) -> NDArray[np.float64]:
    values = np.nan_to_num(np.asarray(attention, dtype=np.float64))
    low, high = values.min(), np.percentile(values, 99.5)
    return np.clip((values - low) / max(high - low, 1e-12), 0.0, 1.0)


def _heated(image: Array, heat: Array) -> Array:
    height, width = image.shape[:2]
    levels = Image.fromarray((heat * 255).astype(np.uint8))
    smooth = np.asarray(levels.resize((width, height), Image.Resampling.BILINEAR)) / 255.0
    color = matplotlib.colormaps["inferno"](smooth)[..., :3] * 255.0
    gray = np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1)
    strength = (0.15 + 0.65 * smooth)[..., None]
    return (gray * (1 - strength) + color * strength).astype(np.uint8)


def _jpeg(pixels: Array) -> str:
    factor = math.ceil(MIN_PIXELS / min(pixels.shape[:2]))
    large = np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1)
    image = Image.fromarray(np.ascontiguousarray(large))
    if min(image.size) > MAX_PIXELS:
        image = image.resize([side * MAX_PIXELS // min(image.size) for side in image.size])
    return _data_uri(image, "JPEG", quality=86)


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    written = io.BytesIO()
    image.save(written, kind, optimize=True, **options)
    text = base64.b64encode(written.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{text}"

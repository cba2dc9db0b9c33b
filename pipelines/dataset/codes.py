"""Perceptual hashes that turn the frames and the sound of a clip into two sequences of codes.

Moments that look or sound alike have codes that differ in few bits, regardless of codec, size,
brightness or loudness.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FRAME_CODES_PER_SECOND = 8.0
SOUND_CODES_PER_SECOND = 31.25
_THUMB = 32
_LOW = 8
_MIN_CONTRAST = 4.0
"""Contrast below which a frame is too flat to identify, as a standard deviation of gray levels."""
_SOUND_WINDOW_SECONDS = 0.256
_SOUND_BANDS = np.geomspace(300.0, 2000.0, 34)
"""Edges of the 33 frequency bands, in hertz."""
_MIN_LOUDNESS = 1e-4
"""Root mean square below which sound counts as silence, as a share of full scale."""


@dataclass(frozen=True)
class Codes:
    """The codes of one clip; `valid` is False where the picture is flat or the sound silent."""

    values: NDArray[np.uint64]
    valid: NDArray[np.bool_]

    def to_bytes(self) -> bytes:
        """Serializes the codes for a table column."""
        return self.values.tobytes() + self.valid.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Codes":
        """Restores codes from the result of `to_bytes`."""
        count = len(data) // 9
        values = np.frombuffer(data, np.uint64, count)
        return cls(values, np.frombuffer(data, np.bool_, count, 8 * count))


def frame_codes(frames: NDArray[np.uint8], frame_rate: float) -> Codes:
    """Hashes frames of shape (T, H, W, 3), sampled eight times per second."""
    times = np.arange(0.0, len(frames) / frame_rate, 1.0 / FRAME_CODES_PER_SECOND)
    chosen = frames[np.minimum((times * frame_rate).astype(int), len(frames) - 1)]
    gray = chosen.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    small = _shrunk(_shrunk(gray, 1), 2)
    basis = _cosines()
    low = np.einsum("uy,tyx,vx->tuv", basis, small, basis)
    levels = np.concatenate(
        [low[:, :_LOW, :_LOW].reshape(len(low), -1)[:, 1:], low[:, 0, _LOW:]], 1
    )
    bits = levels > np.median(levels, axis=1, keepdims=True)
    return Codes(_packed(bits), small.std(axis=(1, 2)) >= _MIN_CONTRAST)


def sound_codes(waveform: NDArray[np.int16], sample_rate: int) -> Codes:
    """Hashes int16 samples, about 31 times per second."""
    samples = waveform.astype(np.float32) / 32768.0
    window = round(_SOUND_WINDOW_SECONDS * sample_rate)
    hop = round(sample_rate / SOUND_CODES_PER_SECOND)
    if len(samples) < window + hop or sample_rate < 2 * _SOUND_BANDS[-1]:
        return Codes(np.empty(0, np.uint64), np.empty(0, np.bool_))
    moments = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    power = np.abs(np.fft.rfft(moments * np.hanning(window).astype(np.float32))) ** 2
    edges = np.searchsorted(np.fft.rfftfreq(window, 1.0 / sample_rate), _SOUND_BANDS)
    bands = np.add.reduceat(power[:, : edges[-1]], edges[:-1], axis=1)
    between = bands[:, :-1] - bands[:, 1:]
    bits = between[1:] - between[:-1] > 0
    loudness = np.sqrt(np.mean(np.square(moments[1:]), axis=1))
    return Codes(_packed(bits), loudness >= _MIN_LOUDNESS)


def _shrunk(images: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Averages an axis down to 32 cells; repeats the cells of a shorter axis."""
    size = images.shape[axis]
    if size < _THUMB:
        return images.take(np.arange(_THUMB) * size // _THUMB, axis=axis)
    edges = np.arange(_THUMB) * size // _THUMB
    counts = np.diff([*edges, size])
    shape = [1] * images.ndim
    shape[axis] = _THUMB
    means: NDArray[np.float32] = np.add.reduceat(images, edges, axis=axis)
    return np.asarray(means / counts.reshape(shape), np.float32)


def _cosines() -> NDArray[np.float32]:
    """Returns the nine lowest basis vectors of the discrete cosine transform."""
    angles = (np.arange(_THUMB) + 0.5) * np.pi / _THUMB
    return np.cos(np.arange(_LOW + 1)[:, None] * angles).astype(np.float32)


def _packed(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    weights = np.uint64(1) << np.arange(bits.shape[1], dtype=np.uint64)
    packed: NDArray[np.uint64] = (bits.astype(np.uint64) * weights).sum(axis=1, dtype=np.uint64)
    return packed

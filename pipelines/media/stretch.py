"""Sound that is played a little slower or faster, without a click where the speed changes."""

import numpy as np
from numpy.typing import NDArray

HALF_TAPS = 16
"""Samples to either side that a new sample is made from."""


class Stretcher:
    """Resamples a stream of samples at a ratio near one that may change from block to block.

    Band-limited interpolation with a Hann-windowed sinc (Smith, "Digital Audio Resampling",
    https://ccrma.stanford.edu/~jos/resample/). While the ratio has always been one, samples pass
    unchanged.
    """

    def __init__(self) -> None:
        self._waiting = np.zeros(HALF_TAPS, np.int16)
        """The last samples, which the next ones are made from."""
        self._at = float(HALF_TAPS)
        """Where the next sample is made, as an index of what waits."""
        self._is_active = False

    def stretch(self, samples: NDArray[np.int16], ratio: float) -> NDArray[np.int16]:
        """Takes N samples and gives about N times the ratio."""
        if not self._is_active and ratio == 1.0:
            self._waiting = np.concatenate([self._waiting, samples])[-HALF_TAPS:]
            return samples
        self._is_active = True
        known = np.concatenate([self._waiting, samples])
        made = np.arange(self._at, len(known) - HALF_TAPS, 1 / ratio)
        result = _interpolated(known.astype(np.float64), made)
        self._at = float(made[-1]) + 1 / ratio if len(made) else self._at
        drop = max(0, min(int(self._at) - HALF_TAPS, len(known) - HALF_TAPS))
        self._waiting, self._at = known[drop:], self._at - drop
        return result

    def rest(self) -> NDArray[np.int16]:
        """Gives the last samples, which nothing follows."""
        if not self._is_active:
            return np.empty(0, np.int16)
        return self.stretch(np.zeros(HALF_TAPS, np.int16), 1.0)


def _interpolated(known: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.int16]:
    base = at.astype(np.int64)
    taps = np.arange(1 - HALF_TAPS, HALF_TAPS + 1)
    distance = (at - base)[:, None] - taps
    weights = np.sinc(distance) * (0.5 + 0.5 * np.cos(np.pi * distance / (HALF_TAPS + 1)))
    values = (known[base[:, None] + taps] * weights).sum(axis=1)
    rounded: NDArray[np.int16] = np.rint(values).clip(-32_768, 32_767).astype(np.int16)
    return rounded

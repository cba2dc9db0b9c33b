"""Plays sound a little slower or faster, without clicks where the speed changes."""

import numpy as np
from numpy.typing import NDArray

HALF_TAPS = 16
"""Samples on either side that contribute to a new sample."""


class Stretcher:
    """Resamples sound at a ratio near one that may change from block to block.

    Uses band-limited interpolation with a Hann-windowed sinc (Smith, "Digital Audio Resampling",
    https://ccrma.stanford.edu/~jos/resample/). Samples pass unchanged until the ratio first differs
    from one.
    """

    def __init__(self) -> None:
        self._waiting = np.zeros(HALF_TAPS, np.int16)
        """The last input samples, from which the next output is computed."""
        self._at = float(HALF_TAPS)
        """Position of the next output sample, as an index of `_waiting`."""
        self._is_active = False

    def stretch(self, samples: NDArray[np.int16], ratio: float) -> NDArray[np.int16]:
        """Returns about N times the ratio samples for N samples."""
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
        """Returns the last samples at the end of the sound."""
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

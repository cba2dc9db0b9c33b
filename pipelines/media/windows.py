"""The windows of a segment that evaluation, embedding and registered models encode.

All of them use this module, so they get the same numbers for the same segment. It needs NumPy
alone, because it travels inside registered models.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def window_starts(num_available: int, num_needed: int, num_windows: int) -> list[int]:
    """Returns starts of windows, evenly spaced from beginning to end; a single one is centered.

    Equal starts are returned once, so there may be fewer than `num_windows`.

    >>> window_starts(40, 32, 3)
    [0, 4, 8]
    >>> window_starts(40, 32, 1)
    [4]
    >>> window_starts(20, 32, 3)
    [0]
    """
    room = num_available - num_needed
    if room <= 0:
        return [0]
    if num_windows == 1:
        return [room // 2]
    return sorted({round(index * room / (num_windows - 1)) for index in range(num_windows)})


def video_windows(
    frames: NDArray[np.uint8], num_frames: int, num_windows: int
) -> list[NDArray[np.uint8]]:
    """Cuts windows of `num_frames` from T H W 3. A segment that is too short is looped."""
    starts = window_starts(len(frames), num_frames, num_windows)
    if len(frames) < num_frames:
        return [looped(frames, num_frames)]
    return [frames[start : start + num_frames] for start in starts]


def audio_windows(
    waveform: NDArray[np.int16], num_samples: int, num_windows: int
) -> list[NDArray[np.int16]]:
    """Cuts windows of `num_samples`. A segment that is too short is padded with silence."""
    starts = window_starts(len(waveform), num_samples, num_windows)
    if len(waveform) < num_samples:
        return [padded(waveform, num_samples)]
    return [waveform[start : start + num_samples] for start in starts]


def looped(frames: NDArray[Any], num_frames: int) -> NDArray[Any]:
    """Repeats the frames from the beginning until there are enough."""
    return frames[np.arange(num_frames) % len(frames)]


def padded(waveform: NDArray[Any], num_samples: int) -> NDArray[Any]:
    """Pads the end with silence until there are enough samples."""
    return np.pad(waveform, (0, num_samples - len(waveform)))


def evenly_spaced(count: int, most: int) -> NDArray[np.intp]:
    """Picks up to `most` of `count` indices, evenly spaced.

    >>> evenly_spaced(16, 4).tolist()
    [0, 5, 10, 15]
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.intp))

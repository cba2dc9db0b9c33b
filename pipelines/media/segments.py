"""A segment of a source, and the counts of what was corrected in it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.media.container import MediaInfo


@dataclass(frozen=True)
class ClockRepairs:
    """Counts of corrections to the timestamps of a segment."""

    clock_leaps: int = 0
    """Times that the clock restarted or jumped. Picture and sound then continue together."""
    sound_gaps: int = 0
    """Times that 30 ms or more of sound was missing and replaced by silence."""
    bridged_gaps: int = 0
    """Times that timestamps of the sound were 30 ms off although no samples were missing."""
    rebased_clocks: int = 0
    """Number of streams, 0 to 2, whose times differ from the container's: after a leap, or because
    they come from the order of frames."""
    held_picture: int = 0
    """1 if the picture ends more than 0.5 s before the segment, which repeats the last frame, else
    0."""
    picture_gaps: int = 0
    """Gaps between pictures of a constant rate, during which the one before stays on."""


@dataclass
class Segment:
    """A part of a source. `frames` or `waveform` is None if that stream has nothing there."""

    start_seconds: float
    duration_seconds: float
    frames: NDArray[np.uint8] | None
    """Frames, T H W 3."""
    waveform: NDArray[np.int16] | None
    decode_errors: int
    """Damaged packets and frames since the previous segment."""
    info: MediaInfo
    repairs: ClockRepairs = ClockRepairs()

"""Finds gaps between the pictures of a stream of constant rate.

Decoders do not notice that pictures were lost from the container: the one before stays on. Only the
times of the others show it. A recorder that leaves out equal pictures writes the same times.

    a constant rate with a gap    | | | | | |     | | | | | |
    a varying rate, no gaps       | |  |     | |   |        |
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GAP_PERIODS = 1.5
"""There is a gap between pictures that are further apart than this many periods."""
REGULAR_TOLERANCE = 0.1
"""Steps differ by at most this share of a period where the rate is constant."""
ROUNDING_SECONDS = 0.0015
"""So do steps that are rounded to milliseconds."""
MIN_REGULAR_FRACTION = 0.75
"""Share of the steps that have the length of the period."""
MAX_OTHER_FRACTION = 0.02
"""Largest share of the steps that are neither a period nor a gap."""
JOINT_SECONDS = 0.5
"""A distance between pictures so close to a leap of the clock belongs to it."""
START_PERIODS = 4.5
"""The first picture of an AVI may stay on for so long: FFmpeg writes empty chunks after it for the
delay of the encoder."""
MIN_PICTURES = 10
"""Fewer pictures do not show whether their rate is constant."""


def picture_gaps(shown: NDArray[np.float64], leaps: Sequence[float]) -> list[float]:
    """Returns when pictures begin that stay on during a gap.

    Args:
        shown: Sorted times when pictures begin, in seconds.
        leaps: Times when the clock leapt, which are no gaps.
    """
    if len(shown) < MIN_PICTURES:
        return []
    steps = np.diff(shown)
    period = float(np.median(steps))
    tolerance = max(REGULAR_TOLERANCE * period, ROUNDING_SECONDS)
    is_regular = np.abs(steps - period) <= tolerance
    is_gap = (steps > GAP_PERIODS * period) & ~is_regular
    num_other = len(steps) - int(is_regular.sum()) - int(is_gap.sum())
    if is_regular.mean() < MIN_REGULAR_FRACTION or num_other > MAX_OTHER_FRACTION * len(steps):
        return []
    is_gap[0] &= steps[0] > START_PERIODS * period
    for leap in leaps:
        is_gap &= (shown[:-1] > leap + JOINT_SECONDS) | (shown[1:] < leap - JOINT_SECONDS)
    return [float(at) for at in shown[:-1][is_gap]]

"""Scores of frozen features, and how far chance moves them."""

import math


def standard_error(share: float, count: int | None) -> float:
    """Standard error of a share that was counted over `count` clips; 0 where that is unknown."""
    if not count or not math.isfinite(share):
        return 0.0
    share = min(max(share, 0.0), 1.0)
    return math.sqrt(share * (1 - share) / count)

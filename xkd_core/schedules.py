"""Schedules: functions of the step or the epoch, so a resumed run needs no scheduler state.

Paper: XKD, arXiv:2211.13929; DINO, arXiv:2104.14294.
"""

import math


def cosine(
    step: int, *, start: float, end: float, total_steps: int, warmup_steps: int = 0
) -> float:
    """Goes from `start` at the end of the warm-up to `end` along half a cosine.

    The warm-up rises linearly from 0 and reaches `start` at its last step. From `total_steps` on
    the value is `end`.
    """
    if step < warmup_steps:
        return start * step / max(1, warmup_steps - 1)
    if step >= total_steps:
        return end
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * progress))


def linear_by_epoch(epoch: float, *, start: float, end: float, warmup_epochs: float) -> float:
    """Goes linearly from `start` in the first epoch to `end` in the last of the warm-up.

    The value changes between epochs, never within one.
    """
    if warmup_epochs <= 0 or epoch >= warmup_epochs:
        return end
    return start + (end - start) * math.floor(epoch) / max(1.0, warmup_epochs - 1.0)

"""Schedules as functions of the step or epoch, so that resuming needs no scheduler state.

Paper: XKD, arXiv:2211.13929; DINO, arXiv:2104.14294.
"""

import math


def cosine(
    step: int, *, start: float, end: float, total_steps: int, warmup_steps: int = 0
) -> float:
    """Returns the value at a step: linear warm-up from 0 to `start`, then half a cosine to `end`.

    start        .--.
                /    '.
               /       '.
    end       /          '-.__________
    0        /
             0   warmup    total_steps
    """
    if step < warmup_steps:
        return start * step / max(1, warmup_steps - 1)
    if step >= total_steps:
        return end
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * progress))


def linear_by_epoch(epoch: float, *, start: float, end: float, warmup_epochs: float) -> float:
    """Returns the value in an epoch: linear from `start` to `end` over the epochs of the warm-up.

    The value is constant within an epoch.

    >>> warmup = {"start": 0.04, "end": 0.06, "warmup_epochs": 3.0}
    >>> [round(linear_by_epoch(epoch, **warmup), 3) for epoch in (0.0, 1.0, 1.9, 2.0, 9.0)]
    [0.04, 0.05, 0.05, 0.06, 0.06]
    """
    if warmup_epochs <= 0 or epoch >= warmup_epochs:
        return end
    return start + (end - start) * math.floor(epoch) / max(1.0, warmup_epochs - 1.0)

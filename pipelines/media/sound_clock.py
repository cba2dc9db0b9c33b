"""Compares timestamps of sound with its samples, and tells holes from noise.

The number of samples of a packet determines its duration, so the next timestamp is new information
only if sound is missing. Recorders stamp packets on arrival, some 20 ms early or late, and their
clocks run up to a percent faster or slower than the clock of the samples:

    error of the timestamp      wobble              drift              a hole
    (timestamp - samples)    .'. .  '.'. .        ....''''         ......
                             '  ' '.  '  '    ....''''                   '''''''
                             gapless          gapless, stretched   silence

Wobble is removed here, before decoding. Drift remains: the decoder stretches the sound to follow
its timestamps.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HOLE_SECONDS = 0.03
"""A sudden and lasting difference of more than this means that sound is missing."""
NOISY_HOLE_SECONDS = 0.05
"""The same for timestamps that wobble, for example by 21 ms to either side."""
NOISY_SECONDS = 0.003
"""Timestamps wobble if they are usually off by more; containers round to a millisecond."""
SMOOTHING_PACKETS = 51
"""Timestamps are replaced by the median over this many packets, about a second of sound."""
STRAY_PACKETS = 25
"""A timestamp far from the median over this many packets is ignored."""
MAX_SWING_SECONDS = 10.0
"""If timestamps step ahead and back again within this much sound, no sound is missing."""


@dataclass
class SoundTimes:
    """The start times of the packets of a stretch of sound, in seconds."""

    starts: NDArray[np.float64]
    """NaN where the start follows from the samples before it."""
    is_break: NDArray[np.bool_]
    """Whether sound is missing before a packet."""
    bridged: list[float]
    """Times where timestamps were off by more than `HOLE_SECONDS` without a hole."""


def sound_times(starts: NDArray[np.float64], durations: NDArray[np.float64]) -> SoundTimes:
    """Tells holes from noise in a stretch of sound on one clock.

    Args:
        starts: Timestamps of the packets; NaN where there is none.
        durations: Declared durations of the packets.
    """
    starts = starts.copy()
    is_break = np.zeros(len(starts), np.bool_)
    known = np.flatnonzero(np.isfinite(starts))
    if len(known) < 3 or np.median(durations) <= 0:
        return SoundTimes(starts, is_break, [])
    samples = np.concatenate([[0.0], np.cumsum(durations)[:-1]])
    clock = samples[known]
    errors = starts[known] - clock
    is_noisy = bool(np.median(np.abs(np.diff(errors))) > NOISY_SECONDS)
    least = NOISY_HOLE_SECONDS if is_noisy else HOLE_SECONDS
    usual = _running_median(errors, STRAY_PACKETS)
    is_stray = np.abs(errors - usual) > least
    bridged = [float(at) for at in (clock + usual)[is_stray]]
    starts[known[is_stray]] = np.nan
    known, clock, errors = known[~is_stray], clock[~is_stray], errors[~is_stray]
    if len(known) < 3:
        return SoundTimes(starts, is_break, bridged)
    breaks = _holes(errors, least)
    breaks, swings = _without_swings(errors, clock, breaks)
    bridged += [float(starts[known[at]]) for at in swings]
    starts[known] = clock + errors
    is_break[known[breaks]] = True
    if is_noisy:
        for first, stop in zip([0, *breaks], [*breaks, len(errors)], strict=True):
            smooth = _running_median(errors[first:stop], SMOOTHING_PACKETS)
            bridged += _bridged(errors[first:stop], clock[first:stop] + smooth)
            starts[known[first:stop]] = clock[first:stop] + smooth
    # First packets without a timestamp have nothing to follow, so they end where the next begins.
    first = int(known[0])
    starts[:first] = starts[first] - (samples[first] - samples[:first])
    return SoundTimes(starts, is_break, sorted(bridged))


def _holes(errors: NDArray[np.float64], least: float) -> list[int]:
    """Finds steps of the error by `least` that last: the largest step of each neighborhood."""
    reach = SMOOTHING_PACKETS // 2
    steps = np.abs(np.diff(errors))
    found: list[int] = []
    for at in np.flatnonzero(steps >= least / 2) + 1:
        before, after = errors[max(0, at - reach) : at], errors[at : at + reach]
        if found:
            before = errors[max(found[-1], at - reach) : at]
        if abs(np.median(after) - np.median(before)) < least or steps[at - 1] < least / 2:
            continue
        if steps[at - 1] >= steps[max(0, at - 1 - 3) : at + 3].max():
            found.append(int(at))
    return found


def _without_swings(
    errors: NDArray[np.float64], clock: NDArray[np.float64], breaks: list[int]
) -> tuple[list[int], list[int]]:
    """Separates breaks into those that last and those that the next step undoes."""
    kept: list[int] = []
    swings: list[int] = []
    for at in breaks:
        before = kept[-1] if kept else None
        if before is not None and clock[at] - clock[before] <= MAX_SWING_SECONDS:
            size = _step(errors, before)
            if abs(size + _step(errors, at)) < HOLE_SECONDS / 2:
                errors[before:at] -= size
                swings += [kept.pop(), at]
                continue
        kept.append(at)
    return kept, swings


def _step(errors: NDArray[np.float64], at: int) -> float:
    return float(np.median(errors[at : at + 5]) - np.median(errors[max(0, at - 5) : at]))


def _bridged(errors: NDArray[np.float64], times: NDArray[np.float64]) -> list[float]:
    """Returns where holes and overlaps would be if every timestamp were right."""
    found = []
    reference = errors[0]
    for error, time in zip(errors.tolist(), times.tolist(), strict=True):
        if abs(error - reference) > HOLE_SECONDS:
            found.append(time)
            reference = error
    return found


def _running_median(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Returns the median of `count` values around each value, of fewer at the ends."""
    count = min(count, len(values) - 1 + len(values) % 2)
    reach = count // 2
    padded = np.pad(values, reach, mode="reflect") if reach else values
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    # In pieces, because the windows take `count` copies of the values.
    pieces = [np.median(windows[at : at + 4096], axis=1) for at in range(0, len(windows), 4096)]
    return np.concatenate(pieces)

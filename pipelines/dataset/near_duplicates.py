"""The search for near-duplicates: clips that look or sound the same although their bytes differ.

Each clip becomes two sequences of codes. A frame has 64 bits, a perceptual hash of its lowest
frequencies. A moment of sound has 32 bits, the signs of energy differences between bands and over
time (Haitsma and Kalker, 2002). Codes survive another codec, bit rate, size or loudness.

Equal parts of codes vote for an offset, here 2 - 0 = 3 - 1 = 5 - 3 = 2:

    position in first     0  1  2  3  4  5
    first                 a  b  c  d  e  f
    second                      c  d  x  f
    position in second          0  1  2  3

This offset has three votes. With at least `min_hits` votes, the clips are compared code by code
over the overlap, `cdef` with `cdxf`. The pair counts if at most `max_error` of the bits differ over
at least `min_seconds`. The search finds copies that begin at another time, but not mirrored,
heavily cropped or sped-up copies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.codes import FRAME_CODES_PER_SECOND, SOUND_CODES_PER_SECOND, Codes

_MAX_HIT_ERROR = 0.2
"""Largest share of differing bits of two codes with an equal part. Of the 43 other bits of a frame,
half differ by chance, so that 3 in 1000 chance hits are left. Of a copy that just counts, 6 differ,
and 996 in 1000 hits are left."""
_MAX_RUN = 24
"""Largest number of later clips with an equal part of a code that a clip is paired with."""
_ROUND = 500_000
"""Number of candidates per comparison batch."""
_SORTED = 2_000_000
"""Approximate number of codes per sort."""


@dataclass(frozen=True)
class Rule:
    """The thresholds at which two sequences of codes are near-duplicates."""

    num_bits: int
    codes_per_second: float
    bands: tuple[tuple[int, int], ...]
    """Parts of a code that vote for an offset, as (first bit, number of bits)."""
    max_error: float
    """Largest share of differing bits."""
    min_seconds: float
    """Shortest overlap, in seconds."""
    min_hits: int
    """Number of votes for an offset before the clips are compared at it."""


FRAME_RULE = Rule(64, FRAME_CODES_PER_SECOND, ((0, 21), (21, 21), (42, 22)), 0.14, 1.0, 1)
SOUND_RULE = Rule(32, SOUND_CODES_PER_SECOND, ((0, 32),), 0.27, 1.5, 2)


@dataclass(frozen=True)
class Pair:
    """Two near-duplicates, the lower clip number first."""

    first: int
    second: int
    error: float
    """Share of differing bits over the overlap."""
    seconds: float
    offset_seconds: float
    """Start of the second clip relative to the first, in seconds."""


def find_pairs(codes: Sequence[Codes], sources: Sequence[int], rule: Rule) -> list[Pair]:
    """Finds near-duplicates among clips of different sources."""
    lengths = np.array([len(clip.values) for clip in codes], np.int64)
    if not lengths.sum():
        return []
    every = _AllCodes(
        np.concatenate([clip.values for clip in codes]),
        np.concatenate([clip.valid for clip in codes]),
        np.cumsum(lengths) - lengths,
        lengths,
    )
    pairs: dict[tuple[int, int], Pair] = {}
    for candidates in _candidates(every, np.asarray(sources, np.int64), rule):
        for pair in _alike(every, candidates, rule):
            best = pairs.get((pair.first, pair.second))
            if best is None or _goodness(pair) < _goodness(best):
                pairs[pair.first, pair.second] = pair
    return [pairs[key] for key in sorted(pairs)]


def _goodness(pair: Pair) -> tuple[float, float, float]:
    """Returns a sort key, best first; the offset breaks ties to make the result deterministic."""
    return pair.error, -pair.seconds, pair.offset_seconds


@dataclass(frozen=True)
class _AllCodes:
    """The codes of all clips, concatenated."""

    values: NDArray[np.uint64]
    valid: NDArray[np.bool_]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


def _candidates(
    every: _AllCodes, sources: NDArray[np.int64], rule: Rule
) -> Iterator[NDArray[np.int64]]:
    """Yields batches of candidates, rows of (first clip, second clip, offset), with enough votes.

    The number of candidates grows with the square of the clips. Where one vote is enough, batches
    are therefore not collected first, and a candidate may occur in several of them.
    """
    found: list[NDArray[np.int64]] = []
    for first_bit, num_bits in rule.bands:
        for keys, clip, entry in _entries(every, first_bit, num_bits):
            codes, position = every.values[entry], entry - every.starts[clip]
            for step in range(1, _MAX_RUN + 1):
                left = np.flatnonzero(keys[:-step] == keys[step:])
                if not len(left):
                    break
                differing = np.bitwise_count(codes[left] ^ codes[left + step])
                left = left[differing <= _MAX_HIT_ERROR * rule.num_bits]
                left = left[sources[clip[left]] != sources[clip[left + step]]]
                right = left + step  # keys are equal, so this clip has the higher number
                found.append(
                    np.stack([clip[left], clip[right], position[left] - position[right]], axis=1)
                )
                if rule.min_hits == 1 and sum(map(len, found)) >= _ROUND:
                    yield from _counted(found, 1)
                    found.clear()
    yield from _counted(found, rule.min_hits)


def _counted(found: Sequence[NDArray[np.int64]], min_hits: int) -> Iterator[NDArray[np.int64]]:
    if found:
        candidates, hits = np.unique(np.concatenate(found), axis=0, return_counts=True)
        candidates = candidates[hits >= min_hits]
        for begin in range(0, len(candidates), _ROUND):
            yield candidates[begin : begin + _ROUND]


def _entries(
    every: _AllCodes, first_bit: int, num_bits: int
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yields one part of all codes as sorted keys, with the clip and the code of each key.

    Each clip has one entry per key, because a still picture repeats its code. Equal keys are in
    one batch, and each batch takes a share of the keys to bound the memory of sorting.
    """
    num_codes = len(every.values)
    clip = np.repeat(np.arange(len(every.lengths), dtype=np.uint32), every.lengths)
    num_shares = np.uint64(num_codes // _SORTED + 1)
    mask = np.uint64((1 << num_bits) - 1)
    for share in range(int(num_shares)):
        positions, keys = [], []
        for begin in range(0, num_codes, _SORTED):
            here = (every.values[begin : begin + _SORTED] >> np.uint64(first_bit)) & mask
            is_mine = every.valid[begin : begin + _SORTED] & (here % num_shares == share)
            positions.append(begin + np.flatnonzero(is_mine))
            keys.append(here[is_mine])
        position = np.concatenate(positions)
        # A key has at most 32 bits, so key and clip fit in one number.
        joint = np.concatenate(keys) << np.uint64(32) | clip[position]
        joint, kept = np.unique(joint, return_index=True)
        owner = clip[position[kept]].astype(np.int64)
        yield joint >> np.uint64(32), owner, position[kept]


def _alike(every: _AllCodes, candidates: NDArray[np.int64], rule: Rule) -> list[Pair]:
    """Compares candidates code by code and returns the near-duplicates."""
    first, second, offset = candidates.T
    begin = np.maximum(offset, 0)
    end = np.minimum(every.lengths[first], every.lengths[second] + offset)
    differing = np.zeros(len(candidates), np.int64)
    compared = np.zeros(len(candidates), np.int64)
    for step in range(int((end - begin).max(initial=0))):
        there = np.flatnonzero(begin + step < end)
        one = every.starts[first[there]] + begin[there] + step
        other = one - every.starts[first[there]] - offset[there] + every.starts[second[there]]
        both = every.valid[one] & every.valid[other]
        bits = np.bitwise_count(every.values[one] ^ every.values[other])
        differing[there] += np.where(both, bits, 0)
        compared[there] += both
    error = differing / np.maximum(compared * rule.num_bits, 1)
    seconds = compared / rule.codes_per_second
    chosen = np.flatnonzero((error <= rule.max_error) & (seconds >= rule.min_seconds))
    return [
        Pair(
            int(first[i]),
            int(second[i]),
            float(error[i]),
            float(seconds[i]),
            float(offset[i] / rule.codes_per_second),
        )
        for i in chosen
    ]

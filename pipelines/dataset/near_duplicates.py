"""Which clips show or sound the same, although their bytes differ.

Each clip becomes two sequences of codes: 64 bits for a frame (a perceptual hash of its lowest
frequencies) and 32 bits for a moment of sound (the signs of energy differences between bands and
over time, as of Haitsma and Kalker 2002). Codes survive another codec, bit rate, size or loudness.
Clips that share a part of a code at some offset in time are compared code by code at that offset;
few differing bits over enough time make them near-duplicates. A copy that begins at another moment
is found, one that is mirrored, much cropped or played at another speed is not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.codes import FRAME_CODES_PER_SECOND, SOUND_CODES_PER_SECOND, Codes

_MIN_MOTION = 0.05
"""Share of a code's bits that change within a second in a picture that moves."""
_MAX_ERROR_OF_MOTION = 0.4
_MAX_RUN = 24
"""Of the clips that share one part of a code each is compared with so many of the next ones."""
_ROUND = 500_000
"""Candidates that are compared at a time."""
_SORTED = 2_000_000
"""Codes that are sorted at a time, about."""


@dataclass(frozen=True)
class Rule:
    """When two sequences of codes are the same."""

    num_bits: int
    codes_per_second: float
    bands: tuple[tuple[int, int], ...]
    """Parts of a code, as first bit and number of bits, of which one must agree."""
    max_error: float
    """Share of differing bits."""
    min_seconds: float
    """Time that must be alike."""
    min_hits: int
    """Agreeing parts at the same offset before two clips are compared."""


FRAME_RULE = Rule(64, FRAME_CODES_PER_SECOND, ((0, 21), (21, 21), (42, 22)), 0.14, 1.0, 1)
SOUND_RULE = Rule(32, SOUND_CODES_PER_SECOND, ((0, 32),), 0.27, 1.5, 2)


@dataclass(frozen=True)
class Pair:
    """Two clips that are alike, the first one with the lower number."""

    first: int
    second: int
    error: float
    """Share of differing bits over the time that they have in common."""
    seconds: float
    offset_seconds: float
    """Where the second one begins in the first one."""


def find_alike(
    frames: Sequence[Codes], sounds: Sequence[Codes], sources: Sequence[int]
) -> list["Alike"]:
    """Finds clips that show or sound the same, the most certain first.

    A picture that hardly moves, or a scene that many clips share, gives like codes without being a
    copy: only if the codes agree much better than the clips' own codes do over a second, the
    pictures move alike.
    """
    pictures = {(pair.first, pair.second): pair for pair in find_pairs(frames, sources, FRAME_RULE)}
    heard = {(pair.first, pair.second): pair for pair in find_pairs(sounds, sources, SOUND_RULE)}
    found = []
    for key in pictures.keys() | heard.keys():
        picture, sound = pictures.get(key), heard.get(key)
        if picture is not None and sound is not None:
            kind = "picture and sound"
        elif picture is None:
            kind = "sound"
        else:
            moved = min(variation(frames[clip], FRAME_RULE) for clip in key)
            is_copy = moved >= _MIN_MOTION and picture.error <= _MAX_ERROR_OF_MOTION * moved
            kind = "picture" if is_copy else SCENE
        pair = picture or sound
        assert pair is not None
        found.append(Alike(kind, *key, 1.0 - pair.error, pair.offset_seconds))
    return sorted(found, key=lambda pair: (KINDS.index(pair.kind), -pair.agreement, pair.first))


@dataclass(frozen=True)
class Alike:
    """Two clips that show or sound the same."""

    kind: str
    """One of `KINDS`."""
    first: int
    second: int
    agreement: float
    """Share of the bits that are the same."""
    offset_seconds: float


SCENE = "scene"
KINDS = ("picture and sound", "picture", "sound", SCENE)
"""From the most to the least certain; a like scene alone is no copy."""


def variation(codes: Codes, rule: Rule) -> float:
    """Share of bits that change within a second: what the codes of a standing picture lack."""
    lag = round(rule.codes_per_second)
    both = codes.valid[lag:] & codes.valid[:-lag]
    if not both.any():
        return 0.0
    bits = np.bitwise_count(codes.values[lag:] ^ codes.values[:-lag])[both]
    return float(bits.mean()) / rule.num_bits


def find_pairs(codes: Sequence[Codes], sources: Sequence[int], rule: Rule) -> list[Pair]:
    """Finds near-duplicates among clips; clips of one source are no duplicates of each other."""
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
    """Less is better; the offset decides last, so that the order of comparing does not."""
    return pair.error, -pair.seconds, pair.offset_seconds


@dataclass(frozen=True)
class _AllCodes:
    """The codes of all clips, one clip after the other."""

    values: NDArray[np.uint64]
    valid: NDArray[np.bool_]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


def _candidates(
    every: _AllCodes, sources: NDArray[np.int64], rule: Rule
) -> Iterator[NDArray[np.int64]]:
    """Pairs of clips and offsets at which enough parts of codes agree: rows of three numbers.

    They come some at a time. Where one agreeing part is enough they are not gathered before: their
    number grows with the square of the clips, and the same one may come again.
    """
    found: list[NDArray[np.int64]] = []
    for first_bit, num_bits in rule.bands:
        for keys, clip, position in _entries(every, first_bit, num_bits):
            for step in range(1, _MAX_RUN + 1):
                left = np.flatnonzero(keys[:-step] == keys[step:])
                if not len(left):
                    break
                left = left[sources[clip[left]] != sources[clip[left + step]]]
                right = left + step  # of the same key, so its clip is the later one
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
    """Gives one part of all codes, sorted, with the clip and the position in it of each.

    There is one entry for each clip and key: a standing picture has the same code all the time.
    Equal keys come together, but not all keys at once: sorting takes several times their memory.
    """
    num_codes = len(every.values)
    clip = np.repeat(np.arange(len(every.lengths), dtype=np.uint32), every.lengths)
    num_shares = np.uint64(num_codes // _SORTED + 1)
    mask = np.uint64((1 << num_bits) - 1)
    for share in range(int(num_shares)):
        places, keys = [], []
        for begin in range(0, num_codes, _SORTED):
            here = (every.values[begin : begin + _SORTED] >> np.uint64(first_bit)) & mask
            is_mine = every.valid[begin : begin + _SORTED] & (here % num_shares == share)
            places.append(begin + np.flatnonzero(is_mine))
            keys.append(here[is_mine])
        place = np.concatenate(places)
        # A key has at most 32 bits, so that key and clip are one number.
        joint = np.concatenate(keys) << np.uint64(32) | clip[place]
        joint, kept = np.unique(joint, return_index=True)
        owner = clip[place[kept]].astype(np.int64)
        yield joint >> np.uint64(32), owner, place[kept] - every.starts[owner]


def _alike(every: _AllCodes, candidates: NDArray[np.int64], rule: Rule) -> list[Pair]:
    """Compares clips code by code and gives those that are alike."""
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

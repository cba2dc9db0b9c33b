"""Ten kinds of motion with matching sound, which `synthetic_scenes` renders.

A kind is a pattern in time. One function of time gives the position, size, angle and visibility of
an object and the loudness and pitch of its voice, so picture and sound stay in sync. Motion stays
below 3 Hz, because encoders see about 8 frames per second. A pattern repeats about twice in two
seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class State:
    """The state of an object over time. x and y range from -1 to 1, and y points down."""

    x: Floats | float = 0.0
    y: Floats | float = 0.0
    size: Floats | float = 1.0
    turns: Floats | float = 0.0
    visible: Floats | float = 1.0
    loudness: Floats | float = 1.0
    semitones: Floats | float = 0.0
    has_twin: bool = False
    """Whether a second object is at the position mirrored about the center."""


Pattern = Callable[[Floats], State]
"""A function from times, in seconds, to states."""


def _bounce(rng: Generator) -> Pattern:
    """Falls and rebounds. Each hit on the floor makes a decaying sound."""
    period, start, decay = rng.uniform(0.5, 0.8), rng.uniform(), rng.uniform(0.06, 0.12)

    def at(time: Floats) -> State:
        phase = (time / period + start) % 1.0
        return State(y=1.0 - 8.0 * phase * (1.0 - phase), loudness=np.exp(-phase * period / decay))

    return at


def _swing(rng: Generator) -> Pattern:
    """Swings like a pendulum. The pitch follows its position."""
    period, start, depth = rng.uniform(0.8, 1.3), rng.uniform(), rng.uniform(4.0, 7.0)
    side = rng.choice((-1.0, 1.0))

    def at(time: Floats) -> State:
        x = np.sin(2.0 * np.pi * (time / period + start))
        return State(x=x, y=0.35 - 0.7 * x**2, semitones=side * depth * x)

    return at


def _swell(rng: Generator) -> Pattern:
    """Grows and shrinks. The loudness follows the size."""
    period, start = rng.uniform(0.6, 1.0), rng.uniform()

    def at(time: Floats) -> State:
        level = 0.5 - 0.5 * np.cos(2.0 * np.pi * (time / period + start))
        return State(size=0.35 + 1.55 * level, loudness=level**1.5)

    return at


def _spin(rng: Generator) -> Pattern:
    """Turns about its center. The voice ticks eight times per turn."""
    period, start, way = rng.uniform(0.9, 1.5), rng.uniform(), rng.choice((-1.0, 1.0))

    def at(time: Floats) -> State:
        turns = time / period + start
        tick = (0.5 + 0.5 * np.cos(2.0 * np.pi * 8.0 * turns)) ** 2
        return State(size=1.4, turns=way * turns, loudness=tick)

    return at


def _blink(rng: Generator) -> Pattern:
    """Appears and disappears. The voice sounds only while the object is visible."""
    period, start, share = rng.uniform(0.5, 0.8), rng.uniform(), rng.uniform(0.4, 0.6)

    def at(time: Floats) -> State:
        there = ((time / period + start) % 1.0 < share).astype(np.float32)
        return State(visible=there, loudness=there)

    return at


def _orbit(rng: Generator) -> Pattern:
    """Moves in a circle. The pitch wavers six times per turn."""
    period, start, way = rng.uniform(0.9, 1.4), rng.uniform(), rng.choice((-1.0, 1.0))
    depth = rng.uniform(2.0, 3.5)

    def at(time: Floats) -> State:
        angle = 2.0 * np.pi * (time / period + start)
        return State(x=way * np.cos(angle), y=np.sin(angle), semitones=depth * np.sin(6.0 * angle))

    return at


def _sweep(rng: Generator) -> Pattern:
    """Crosses the picture at constant speed, repeatedly. The pitch rises meanwhile."""
    period, start, way = rng.uniform(0.6, 0.9), rng.uniform(), rng.choice((-1.0, 1.0))
    depth = rng.uniform(5.0, 8.0)

    def at(time: Floats) -> State:
        x = 2.0 * ((time / period + start) % 1.0) - 1.0
        return State(x=way * x, semitones=depth * x)

    return at


def _collide(rng: Generator) -> Pattern:
    """Two objects collide and part. The voice grows until they meet, then stops."""
    period, start, rise = rng.uniform(0.7, 1.1), rng.uniform(), rng.uniform(0.10, 0.16)

    def at(time: Floats) -> State:
        phase = (time / period + start) % 1.0
        approaching = phase > 0.5
        loudness = np.where(approaching, np.exp(-(1.0 - phase) * period / rise), 0.0)
        return State(x=0.2 + 1.7 * np.minimum(phase, 1.0 - phase), loudness=loudness, has_twin=True)

    return at


def _jump(rng: Generator) -> Pattern:
    """Jumps from position to position. Each position has its own note."""
    period, start = rng.uniform(0.28, 0.42), rng.uniform()
    angles = np.cumsum(rng.uniform(0.25, 0.75, 64)) * 2.0 * np.pi
    radii = rng.uniform(0.6, 1.2, 64)
    notes = np.cumsum(rng.uniform(0.3, 0.7, 64)) % 1.0 * 14.0 - 7.0

    def at(time: Floats) -> State:
        number = np.floor(time / period + start).astype(int)
        return State(
            x=(radii * np.cos(angles))[number].clip(-1.0, 1.0).astype(np.float32),
            y=(radii * np.sin(angles))[number].clip(-1.0, 1.0).astype(np.float32),
            semitones=notes[number].astype(np.float32),
        )

    return at


def _fall(rng: Generator) -> Pattern:
    """Drops out of the picture repeatedly. The pitch drops with it."""
    period, start, depth = rng.uniform(0.6, 0.9), rng.uniform(), rng.uniform(5.0, 8.0)

    def at(time: Floats) -> State:
        phase = (time / period + start) % 1.0
        y = 2.4 * (0.5 * phase + 0.5 * phase**2) - 1.2
        return State(y=y, semitones=-depth * y)

    return at


KINDS: dict[str, Callable[[Generator], Pattern]] = {
    "bounce": _bounce,
    "swing": _swing,
    "swell": _swell,
    "spin": _spin,
    "blink": _blink,
    "orbit": _orbit,
    "sweep": _sweep,
    "collide": _collide,
    "jump": _jump,
    "fall": _fall,
}

"""Scenes of the synthetic clips: patterns rendered as frames and a waveform.

A kind has its own pattern in time and its own object surface. It shares the object's shape and
voice with other kinds, as real scenes do. The other features of a frame or a mean spectrum (colors,
size, position, background, bystanders, noise, loudness, base pitch) have the same distribution for
every kind.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pipelines.sources.synthetic_patterns import KINDS, Floats, State

FRAME_SIZES = ((128, 96), (160, 120), (144, 108), (112, 112), (96, 128), (160, 96))
FRAME_RATES = (16, 20, 24, 25, 30)
WAVE_SAMPLES = 4096
Surface = Callable[[Floats, Floats], Floats]
"""A function from positions on an object to marks between -1 and 1."""
HIGHEST_PARTIAL = 4700.0


@dataclass(frozen=True)
class Scene:
    """A clip before encoding."""

    frames: NDArray[np.uint8]
    """RGB frames, of shape (T, H, W, 3)."""
    frame_rate: int
    waveform: NDArray[np.int16]
    """Samples, of shape (S, C), where C is 1 or 2."""
    sample_rate: int


def make_scene(kind: str, rng: Generator, *, sample_rate: int) -> Scene:
    """Makes a scene of a kind in `KINDS`. The same generator state gives the same scene."""
    pattern = KINDS[kind](rng)
    seconds = rng.uniform(3.0, 4.0)
    frame_rate = int(rng.choice(FRAME_RATES))
    frame_times = np.arange(round(seconds * frame_rate), dtype=np.float32) / frame_rate
    sample_times = np.arange(round(seconds * sample_rate), dtype=np.float32) / sample_rate
    number = list(KINDS).index(kind)
    shape = list(SHAPES)[number % len(SHAPES)]
    formants = VOICES[number % len(VOICES)]
    look = (shape, SURFACES[number % len(SURFACES)])
    frames = _draw_frames(pattern(frame_times), len(frame_times), look, rng)
    waveform = _voice(pattern(sample_times), len(sample_times), sample_rate, formants, rng)
    return Scene(frames, frame_rate, waveform, sample_rate)


def _draw_frames(
    state: State, num_frames: int, look: tuple[str, Surface], rng: Generator
) -> NDArray[np.uint8]:
    """Draws a still background with bystanders, the moving object, and camera noise."""
    width, height = FRAME_SIZES[rng.integers(len(FRAME_SIZES))]
    unit = min(width, height) / 2.0  # half the side of a center crop
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    v, u = (rows - (height - 1) / 2.0) / unit, (columns - (width - 1) / 2.0) / unit
    background_color, color = _two_colors(rng)
    background = _background(u, v, background_color, rng)
    for _ in range(rng.integers(3)):
        background = _with_bystander(background, u, v, unit, rng)

    # Copies of the object move in sync on a lattice, so that every part of the picture has motion.
    shape, surface = look
    spacing, tilt = rng.uniform(1.2, 1.6), rng.uniform()
    radius, reach = spacing * rng.uniform(0.26, 0.34), spacing * rng.uniform(0.24, 0.3)
    contrast = rng.uniform(-80.0, -50.0, 3).astype(np.float32)
    left, top = rng.uniform(0.0, spacing, 2).astype(np.float32)
    x, y, size, turns, visible = (
        np.broadcast_to(np.asarray(value, np.float32), num_frames)[:, None, None]
        for value in (state.x, state.y, state.size, state.turns, state.visible)
    )
    cover, marks = np.zeros((), np.float32), np.zeros((), np.float32)
    for side in (1.0, -1.0) if state.has_twin else (1.0,):
        near_u = _to_nearest(u - left - side * reach * x, spacing)
        near_v = _to_nearest(v - top - side * reach * y, spacing)
        one = _cover(shape, near_u, near_v, radius * size, turns + side * tilt, unit)
        marks = np.where(one > cover, surface(near_u, near_v), marks)
        cover = np.maximum(cover, one)
    cover = (cover * visible)[..., None]
    frames = background + cover * (color + marks[..., None] * contrast - background)
    frames += _camera_noise(frames.shape, rng)
    return frames.clip(0.0, 255.0).astype(np.uint8)


def _to_nearest(offset: Floats, spacing: float) -> Floats:
    """Returns the offset from the nearest point of a lattice through 0."""
    return offset - spacing * np.round(offset / spacing)


def _two_colors(rng: Generator) -> tuple[Floats, Floats]:
    """Draws a dark and a light color of any hue, muted like natural colors."""
    tints = rng.uniform(-15.0, 15.0, (2, 3))
    levels = np.array([[rng.uniform(50.0, 75.0)], [rng.uniform(150.0, 185.0)]])
    dark, light = (levels + tints).astype(np.float32)
    return dark, light


def _background(u: Floats, v: Floats, color: Floats, rng: Generator) -> Floats:
    """Draws a color with a gradient, stripes or blotches."""
    angle, frequency, phase = (
        rng.uniform(0.0, 2.0 * np.pi),
        rng.uniform(1.5, 4.0),
        rng.uniform(0.0, 6.0),
    )
    along = np.float32(np.cos(angle)) * u + np.float32(np.sin(angle)) * v
    across = np.float32(np.cos(angle)) * v - np.float32(np.sin(angle)) * u
    textures = (
        along,
        np.sin(frequency * along + phase),
        np.sin(frequency * along + phase) * np.sin(frequency * across),
    )
    texture = textures[rng.integers(len(textures))] * rng.uniform(6.0, 14.0)
    return (color + texture[..., None]).clip(0.0, 255.0).astype(np.float32)


def _with_bystander(
    background: Floats, u: Floats, v: Floats, unit: float, rng: Generator
) -> Floats:
    shape = list(SHAPES)[rng.integers(len(SHAPES))]
    x, y = rng.uniform(-1.0, 1.0, 2).astype(np.float32)
    color = (rng.uniform(50.0, 110.0) + rng.uniform(-15.0, 15.0, 3)).astype(np.float32)
    radius = np.full((1, 1), rng.uniform(0.15, 0.35), np.float32)
    turns = np.full((1, 1), rng.uniform(), np.float32)
    cover = _cover(shape, u - x, v - y, radius, turns, unit)[..., None]
    return background + cover * (color - background)


def _cover(shape: str, u: Floats, v: Floats, radius: Floats, turns: Floats, unit: float) -> Floats:
    """Returns the fraction of each pixel that a shape of this radius about (0, 0) covers."""
    cos = np.cos(2.0 * np.pi * turns).astype(np.float32) / radius
    sin = np.sin(2.0 * np.pi * turns).astype(np.float32) / radius
    distance = SHAPES[shape](cos * u + sin * v, cos * v - sin * u)
    return (0.5 - distance * radius * np.float32(unit)).clip(0.0, 1.0)


def _box(u: Floats, v: Floats, half_width: float, half_height: float) -> Floats:
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


# Approximate signed distance to the edge of a shape of radius 1. No shape is a full disc, so that
# rotation is visible with every shape.
SHAPES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "bar": lambda u, v: _box(u, v, 1.1, 0.4),
    "square": lambda u, v: _box(u, v, 0.8, 0.8),
    "cross": lambda u, v: np.minimum(_box(u, v, 1.1, 0.33), _box(u, v, 0.33, 1.1)),
    "ellipse": lambda u, v: 0.6 * np.sqrt(u**2 + 3.5 * v**2) - 0.66,
    "triangle": lambda u, v: np.maximum(0.866 * np.abs(u) + 0.5 * v, -v) - 0.55,
    "half_disc": lambda u, v: np.maximum(np.sqrt(u**2 + v**2) - 1.1, -v - 0.2),
}


def _waves(along_u: float, along_v: float) -> Surface:
    """Makes stripes from two frequencies, in cycles over half the picture."""
    return lambda u, v: np.sign(np.sin(2.0 * np.pi * (along_u * u + along_v * v))).astype(
        np.float32
    )


def _squares(cycles: float) -> Surface:
    rows, columns = _waves(0.0, cycles), _waves(cycles, 0.0)
    return lambda u, v: rows(u, v) * columns(u, v)


def _rings(cycles: float) -> Surface:
    return lambda u, v: np.sign(np.sin(2.0 * np.pi * cycles * np.hypot(u, v))).astype(np.float32)


# Diagonals go both ways, so that a mirror image stays the same kind.
SURFACES: tuple[Surface, ...] = (
    _waves(0.0, 2.0),
    _waves(2.0, 0.0),
    _squares(2.0),
    _rings(2.0),
    lambda u, v: np.ones_like(u + v),
    _waves(0.0, 4.0),
    _waves(4.0, 0.0),
    _squares(4.0),
    _rings(4.0),
    lambda u, v: _waves(1.5, 1.5)(np.abs(u), v),
)


def _camera_noise(shape: tuple[int, ...], rng: Generator) -> Floats:
    """Makes grain by shifting one sheet of noise per frame, as fresh noise is slow to draw."""
    num_frames, height, width, _ = shape
    sheet = rng.standard_normal((height + 32, width + 32), dtype=np.float32) * rng.uniform(0.0, 3.0)
    shifts = rng.integers(32, size=(num_frames, 2))
    grain = [sheet[y : y + height, x : x + width] for y, x in shifts]
    return np.stack(grain)[..., None]


def _voice(
    state: State,
    num_samples: int,
    sample_rate: int,
    formants: tuple[float, float],
    rng: Generator,
) -> NDArray[np.int16]:
    """Makes the sound, mono or stereo: the object's voice and faint noise."""
    base = 2.0 ** rng.uniform(np.log2(130.0), np.log2(330.0))
    semitones = np.broadcast_to(np.asarray(state.semitones, np.float64), num_samples)
    cycles = np.cumsum(base * 2.0 ** (semitones / 12.0)) / sample_rate + rng.uniform()
    wave = _timbre(base, formants, rng)
    voice = wave[(cycles % 1.0 * len(wave)).astype(np.int32)] * state.loudness
    noise = _colored_noise(num_samples, rng) * 10.0 ** rng.uniform(-3.3, -2.3)
    mono = 10.0 ** rng.uniform(-1.1, -0.3) * (voice + noise)
    gains = np.ones(1) if rng.uniform() < 0.5 else rng.uniform(0.6, 1.0, 2)
    return (mono[:, None] * gains * 32767.0).clip(-32768.0, 32767.0).astype(np.int16)


# The two formants of each voice, which form its vowel, in Hz.
VOICES = ((400.0, 900.0), (700.0, 2600.0), (300.0, 2200.0), (1100.0, 3400.0), (1800.0, 4200.0))


def _timbre(base: float, formants: tuple[float, float], rng: Generator) -> Floats:
    """Makes one cycle of a voice with peak 1, a random brightness and a vowel."""
    num_partials = int(HIGHEST_PARTIAL / base)
    partial = np.arange(1, num_partials + 1)
    strength = partial ** -rng.uniform(0.4, 1.2)
    for formant in formants:
        strength *= 1.0 + 3.0 * np.exp(-(((partial * base - formant) / 200.0) ** 2))
    spectrum = np.zeros(WAVE_SAMPLES // 2 + 1, np.complex128)
    spectrum[1 : num_partials + 1] = strength * np.exp(2j * np.pi * rng.uniform(size=num_partials))
    wave = np.fft.irfft(spectrum)
    return (wave / np.abs(wave).max()).astype(np.float32)


def _colored_noise(num_samples: int, rng: Generator) -> Floats:
    """Makes noise between white and nearly brown, with standard deviation 1."""
    padded = 1 << (num_samples - 1).bit_length()  # the FFT is slow for other lengths
    spectrum = np.fft.rfft(rng.standard_normal(padded, dtype=np.float32))
    slope = rng.uniform(0.0, 0.75)
    spectrum *= np.maximum(np.arange(len(spectrum), dtype=np.float32), 20.0) ** -slope
    noise = np.fft.irfft(spectrum)[:num_samples].astype(np.float32)
    return noise / noise.std()

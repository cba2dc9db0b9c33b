"""Pictures and sounds that are as different from each other as real ones, by a seed."""

import numpy as np

RATE, SAMPLE_RATE = 8.0, 16_000


def scene(seed, seconds=5.0, size=(96, 128), *, spread=0.02, shot=None):
    """Blobs that move over a background; `shot` fixes the background, `spread` the blobs' size."""
    rng = np.random.default_rng(seed)
    shot_rng = np.random.default_rng(seed if shot is None else shot)
    height, width = size
    y, x = np.mgrid[0:height, 0:width] / height
    waves = shot_rng.uniform(1, 6, (4, 2))
    ground = sum(np.sin(x * a + y * b + a) for a, b in waves) * 15 + 128
    ground += shot_rng.normal(0, 20, (12, 16)).repeat(8, 0).repeat(8, 1)[:height, :width]
    frames = []
    positions, speeds = rng.uniform(0, 1, (4, 2)), rng.normal(0, 0.35, (4, 2))
    for tick in range(round(seconds * RATE)):
        frame = ground.copy()
        for position, speed in zip(positions, speeds, strict=True):
            at = (position + speed * tick / RATE) % 1.2
            frame += 110 * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / spread)
        frames.append(np.repeat(frame.clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1))
    return np.stack(frames)


def sound(seed, seconds=5.0):
    """Notes of changing height and loudness over noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    steps = (time * 6).astype(int)
    tones = sum(
        np.sin(2 * np.pi * np.cumsum(rng.uniform(250, 2200, steps.max() + 1)[steps]) / SAMPLE_RATE)
        for _ in range(3)
    )
    loud = rng.uniform(0.2, 1.0, steps.max() + 1)[steps]
    return ((tones * loud + rng.normal(0, 0.05, len(time))) * 5000).astype(np.int16)

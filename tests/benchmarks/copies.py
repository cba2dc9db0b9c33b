"""Are copies of clips found, and is what merely sounds alike left alone?

    python tests/benchmarks/copies.py media=FOLDER [every=1] [most=40]

Takes every n-th media file below a folder, at most so many, and makes one copy of each in turn:
re-encoded, without its first 0.75 s, at a fifth of the volume, at half the size and dimmed, and all
of it. Originals and copies are then compared as `ray_jobs.dataset` compares clips of different
sources. A pair of different originals that counts as a copy would be a false leak.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from program import environment, options

from pipelines.dataset.alike import REPEATING, SCENE, find_alike
from pipelines.dataset.codes import Codes, frame_codes, sound_codes
from pipelines.media.decode import decode_segments
from tests.helpers.media import write_media

DEFAULTS = {"media": "", "every": "1", "most": "40"}
FRAME_RATE, SAMPLE_RATE = 8, 16_000
CUT_SECONDS = 0.75
KINDS = ("re-encoded", "cut", "volume", "small and dim", "all")
SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".ts", ".ogg")
Clip = tuple[NDArray[np.uint8] | None, NDArray[np.int16] | None]
"""Frames and samples; either may be missing."""


def main() -> None:
    """Prints one line for each kind of copy, and one JSON line last."""
    given = options(DEFAULTS)
    files = sorted(f for f in Path(given["media"]).rglob("*") if f.suffix in SUFFIXES)
    files = files[:: int(given["every"])][: int(given["most"])]
    started = time.process_time()
    originals = [clip for clip in map(read, files) if clip is not None]
    with tempfile.TemporaryDirectory() as folder:
        copies = list(copied(originals, Path(folder)))
    every = [*originals, *(clip for _, _, clip in copies)]
    pairs = {
        (one.first, one.second): one.kind for one in find_alike(*codes(every), range(len(every)))
    }
    excluded = {pair for pair, kind in pairs.items() if kind not in (SCENE, REPEATING)}
    made, found = Counter(kind for kind, _, _ in copies), Counter[str]()
    for number, (kind, of, _) in enumerate(copies):
        found[kind] += (of, len(originals) + number) in excluded
    for kind in KINDS:
        print(f"{kind:16} {found[kind]} of {made[kind]} found")
    false = [pair for pair in excluded if pair[1] < len(originals)]
    alike = [pair for pair in pairs if pair[1] < len(originals) and pair not in excluded]
    print(f"{len(originals)} different clips: {len(false)} pairs excluded, {len(alike)} only shown")
    line = {"benchmark": "copies", **environment("numpy", "av"), "settings": given}
    line |= {"found": dict(found), "made": dict(made), "false": len(false), "shown": len(alike)}
    print(json.dumps(line | {"cpu_seconds": time.process_time() - started}))


def read(path: Path) -> Clip | None:
    """Reads the first ten seconds of a file; None if nothing of it decodes."""
    found = decode_segments(
        str(path),
        segment_seconds=10.0,
        min_segment_seconds=0.5,
        frame_rate=FRAME_RATE,
        short_side=128,
        sample_rate=SAMPLE_RATE,
        max_pixels=10**8,
        max_seconds=1000.0,
    )
    first = next(iter(found), None)
    return None if first is None else (first.frames, first.waveform)


def copied(originals: list[Clip], folder: Path) -> Iterator[tuple[str, int, Clip]]:
    """Yields a copy of each clip, its kind in turn, after a lossy file."""
    for number, (frames, waveform) in enumerate(originals):
        kind = KINDS[number % len(KINDS)]
        if kind in ("cut", "all"):
            frames = None if frames is None else frames[round(CUT_SECONDS * FRAME_RATE) :]
            waveform = None if waveform is None else waveform[round(CUT_SECONDS * SAMPLE_RATE) :]
        if kind in ("volume", "all") and waveform is not None:
            waveform = (waveform * 0.2).astype(np.int16)
        if kind in ("small and dim", "all") and frames is not None:
            frames = (frames[:, ::2, ::2] * 0.7 + 20).astype(np.uint8)
        shown = [] if frames is None else list(even(frames))
        path = folder / f"{number}.webm"
        write_media(path, shown, waveform, frame_rate=FRAME_RATE, sample_rate=SAMPLE_RATE)
        if (clip := read(path)) is not None:
            yield kind, number, clip


def even(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames of even height and width, as encoders want them."""
    return frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]


def codes(clips: list[Clip]) -> tuple[list[Codes], list[Codes]]:
    """Codes of the pictures and of the sounds."""
    nothing = Codes(np.empty(0, np.uint64), np.empty(0, np.bool_))
    frames = [nothing if f is None else frame_codes(f, FRAME_RATE) for f, _ in clips]
    sounds = [nothing if w is None else sound_codes(w, SAMPLE_RATE) for _, w in clips]
    return frames, sounds


if __name__ == "__main__":
    main()

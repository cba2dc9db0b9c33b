"""What do raw, JPEG and H.264 clips cost, and how much of the picture do they keep?

    python tests/benchmarks/clip_encodings.py [input=FOLDER] [clips=24] [repeats=5] [window=32]

Media are decoded as an ingest does: 8 frames a second, short side 128, segments of 5 s. Of a
folder, which is searched with its subfolders, the program takes as many segments as `clips`, at
most four of a file; without one it makes synthetic clips. Each encoding and quality stores all
segments, then decodes them whole and in windows of `window` frames at random starts, as training
does. All are measured in CPU milliseconds a clip of one thread, in turns. PSNR is that of all
pixels of a clip, the mean over clips.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from program import environment, median_and_range, options

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipelines.config.ingest import SyntheticSettings
from pipelines.dataset.frame_encoding import decode_frames, encode_frames
from pipelines.media.container import DecodeError
from pipelines.media.decoder.process import DecoderProcess
from pipelines.sources.synthetic_clips import make_clips

DEFAULTS = {"input": "", "clips": "24", "repeats": "5", "window": "32"}
FRAME_RATE = 8.0
WAYS = [
    ("raw", 0),
    ("jpeg", 80),
    ("jpeg", 90),
    ("jpeg", 95),
    ("h264", 16),
    ("h264", 20),
    ("h264", 24),
]
Clip = np.ndarray


def main() -> None:
    """Prints a table, and one JSON line last."""
    given = options(DEFAULTS)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given["input"] or temporary)
        if not given["input"]:
            folder = folder / "made"
            settings = SyntheticSettings(num_clips=max(16, int(given["clips"])))
            make_clips(folder, settings, lambda *_: None)
        clips = list(islice(segments(folder), int(given["clips"])))
    if not clips:
        raise SystemExit(f"input ({folder}) has no file with a picture")
    results = measure(clips, int(given["repeats"]), int(given["window"]))
    sizes = sorted({"x".join(map(str, clip.shape[:3])) for clip in clips})
    line = {"benchmark": "clip_encodings", **environment("av", "pillow", "torchvision")}
    print(json.dumps(line | {"settings": given, "shapes": sizes, "results": results}))


def segments(folder: Path) -> Iterator[Clip]:
    """Yields the frames of segments, of each file at most four."""
    decoder = DecoderProcess(max_memory_bytes=4_000_000_000, timeout_seconds=60.0)
    try:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            found = decoder.segments(
                str(file),
                segment_seconds=5.0,
                min_segment_seconds=1.1,
                frame_rate=FRAME_RATE,
                short_side=128,
                sample_rate=16_000,
                max_pixels=8192 * 8192,
                max_seconds=1e9,
            )
            try:
                for segment in islice(found, 4):
                    if segment.frames is not None:
                        yield segment.frames.copy()
            except DecodeError:
                continue
    finally:
        decoder.close()


def measure(clips: Sequence[Clip], repeats: int, window: int) -> dict[str, dict[str, float]]:
    """Measures all ways in turns, after one turn that is not counted."""
    took: dict[tuple[str, int], list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    kept: dict[tuple[str, int], tuple[float, float]] = {}
    generator = np.random.default_rng(0)
    starts = [int(generator.integers(max(len(clip) - window, 0) + 1)) for clip in clips]
    for number in range(repeats + 1):
        for encoding, quality in WAYS:
            stored, encode = timed(
                lambda e=encoding, q=quality: [encode_frames(c, e, q, FRAME_RATE) for c in clips]
            )
            shapes = [clip.shape[:3] for clip in clips]
            pairs = list(zip(stored, shapes, starts, strict=True))
            whole, decode = timed(
                lambda e=encoding, p=pairs: [decode_frames(data, e, size) for data, size, _ in p]
            )
            _, part = timed(
                lambda e=encoding, p=pairs: [
                    decode_frames(data, e, size, slice(start, start + window)).copy()
                    for data, size, start in p
                ]
            )
            kept[encoding, quality] = (
                mean(each.size for each in stored),
                mean(psnr(clip, frames) for clip, frames in zip(clips, whole, strict=True)),
            )
            if number:
                took[encoding, quality].append((encode, decode, part))
    return report(took, kept, len(clips))


def report(
    took: dict[tuple[str, int], list[tuple[float, float, float]]],
    kept: dict[tuple[str, int], tuple[float, float]],
    num_clips: int,
) -> dict[str, dict[str, float]]:
    """Prints a line for each way."""
    raw_bytes = kept["raw", 0][0]
    results = {}
    for (encoding, quality), turns in took.items():
        num_bytes, likeness = kept[encoding, quality]
        encode, decode, part = (
            [1e3 * seconds / num_clips for seconds in each] for each in zip(*turns, strict=True)
        )
        name = f"{encoding} {quality}" if quality else encoding
        shown = f"{num_bytes / 1e3:7.0f} kB, 1/{raw_bytes / num_bytes:4.1f}  PSNR {likeness:5.1f}"
        print(
            f"{name:8} {shown}  ms: encode {median_and_range(encode, 1)}, "
            f"decode {median_and_range(decode, 1)}, "
            f"window {median_and_range(part, 1)}"
        )
        results[name] = {
            "bytes": num_bytes,
            "psnr": likeness,
            "encode_ms": median(encode),
            "decode_ms": median(decode),
            "window_ms": median(part),
        }
    return results


def timed(work: Callable[[], list[Any]]) -> tuple[list[Any], float]:
    """Returns a result and the CPU seconds that it took."""
    begin = time.process_time()
    return work(), time.process_time() - begin


def psnr(one: Clip, other: Clip) -> float:
    """Peak signal-to-noise ratio in decibels; 99 for equal pixels."""
    error = np.square(one.astype(np.float32) - other).mean()
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


if __name__ == "__main__":
    main()

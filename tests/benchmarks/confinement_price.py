"""What share of the CPU of decoding is confinement, by the length and size of a source?

    python tests/benchmarks/confinement_price.py input=VIDEO [sides=360,720] [seconds=3,10,30,600] \
        [repeats=3]

The video is encoded anew (H.264 and AAC) at each size and cut to each length; what is longer than
the video repeats it. A confined process for each file and one process for all files, without
confinement, decode the same sources in turns. CPU seconds of all processes are counted.
"""

import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from pipelines.media.decoder.process import DecoderProcess
from tests.benchmarks.cpu_time import tree_cpu_seconds
from tests.benchmarks.program import environment, options
from tests.helpers.reused_decoder import ReusedDecoder

DEFAULTS = {"input": "", "sides": "360,720", "seconds": "3,10,30,600", "repeats": "3"}
SETTINGS = {
    "segment_seconds": 5.0,
    "min_segment_seconds": 0.5,
    "frame_rate": 8.0,
    "short_side": 128,
    "sample_rate": 16_000,
}
SECONDS_A_TURN = 60
"""Seconds of video that a turn decodes at least, in as many files as that takes."""


def main() -> None:
    """Prints a table, and one JSON line last."""
    given = options(DEFAULTS)
    limits: dict[str, Any] = {"max_memory_bytes": 2_000_000_000, "timeout_seconds": 60.0}
    confined, reused = DecoderProcess(**limits), ReusedDecoder(**limits)
    results = []
    print("| source | ms a file, confined | one process | price in ms | share of the CPU |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for side in map(int, given["sides"].split(",")):
            encoded = encode(given["input"], side, Path(folder) / f"{side}.mkv")
            for seconds in map(int, given["seconds"].split(",")):
                path = cut(encoded, seconds, Path(folder) / f"{side}_{seconds}.mp4")
                row = price(confined, reused, str(path), seconds, int(given["repeats"]))
                path.unlink()
                results.append({"side": side, "seconds": seconds} | row)
                print(
                    f"| {seconds} s, {side}p | {row['confined_ms']:,.1f} | {row['reused_ms']:,.1f} "
                    f"| {row['price_ms']:.1f} ({row['price_ms_min']:.1f} to "
                    f"{row['price_ms_max']:.1f}) | {100 * row['share']:.1f} % |",
                    flush=True,
                )
    confined.close(), reused.close()
    line = {"benchmark": "confinement_price", **environment("av")}
    print(json.dumps(line | {"settings": given, "results": results}))


def price(
    confined: DecoderProcess, reused: DecoderProcess, path: str, seconds: int, repeats: int
) -> dict[str, float]:
    """CPU milliseconds a file, in turns, each after one file that is not counted."""
    num_files = max(1, SECONDS_A_TURN // seconds)
    ways = (confined, reused)
    taken: list[list[float]] = [[], []]
    for number in range(repeats + (seconds <= SECONDS_A_TURN)):
        for way, values in zip(ways, taken, strict=True):
            cpu = tree_cpu_seconds(
                lambda way=way: [list(way.segments(path, **SETTINGS)) for _ in range(num_files)]
            )
            if number or seconds > SECONDS_A_TURN:  # the first turn starts the processes
                values.append(1e3 * cpu / num_files)
    differences = [one - other for one, other in zip(*taken, strict=True)]
    return {
        "confined_ms": statistics.median(taken[0]),
        "reused_ms": statistics.median(taken[1]),
        "price_ms": statistics.median(differences),
        "price_ms_min": min(differences),
        "price_ms_max": max(differences),
        "share": statistics.median(
            difference / one for difference, one in zip(differences, taken[0], strict=True)
        ),
    }


def encode(video: str, side: int, target: Path) -> Path:
    """Encodes at most 30 s of a video with a short side, with a key picture each second."""
    picture = ["-vf", f"scale=-2:{side}", "-c:v", "libx264", "-preset", "veryfast", "-g", "24"]
    run("-t", "30", "-i", video, *picture, "-c:a", "aac", str(target))
    return target


def cut(video: Path, seconds: int, target: Path) -> Path:
    """Copies the beginning of a video, which repeats if it is shorter."""
    run("-stream_loop", "-1", "-i", str(video), "-t", str(seconds), "-c", "copy", str(target))
    return target


def run(*arguments: str) -> None:
    """Runs the ffmpeg command."""
    subprocess.run(["ffmpeg", "-v", "error", "-y", *arguments], check=True, stdin=-3)


if __name__ == "__main__":
    main()

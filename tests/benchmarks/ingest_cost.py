"""How much CPU does ingest take above a bare PyAV loop that decodes the same files?

    python tests/benchmarks/ingest_cost.py [FOLDER]

Without a folder it makes 12 clips of 10 s, 340 x 256, 30 frames a second, with sound. The bare loop
decodes every frame and every sample and keeps nothing. Ingest is one unit, decoder process and
writing included, without Ray and without the start of the process, which serves many units. Both
are measured in CPU seconds, in turns.
"""

import json
import shutil
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from media import tone, write_media

from pipelines.config import IngestSettings
from pipelines.ingest_plan import Unit, UnitSource
from pipelines.ingest_unit import UnitIngester

REPEATS = 5


def main() -> None:
    """Prints a table, and one JSON line last."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else make(Path(temporary) / "media")
        paths = sorted(str(path) for path in folder.rglob("*") if path.is_file())
        num_frames = decode_all(paths)
        output = Path(temporary) / "out"
        unit = UnitIngester(str(output), IngestSettings().model_dump(mode="json"))
        ingest(unit, paths[:1], output)
        bare, ingested = [], []
        for _ in range(REPEATS):
            bare.append(cpu_seconds(lambda: decode_all(paths)))
            ingested.append(cpu_seconds(lambda: ingest(unit, paths, output)))
        unit.close()
    ratios = [one / other for one, other in zip(ingested, bare, strict=True)]
    print(f"bare loop {num_frames / statistics.median(bare):8.0f} frames/CPU-s")
    print(f"ingest    {num_frames / statistics.median(ingested):8.0f} frames/CPU-s")
    print(f"ratio     {statistics.median(ratios):8.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    results = {"bare": bare, "ingest": ingested, "ratio": statistics.median(ratios)}
    print(json.dumps({"benchmark": "ingest_cost", "av": version("av"), "results": results}))


def make(folder: Path) -> Path:
    """Writes clips of a noisy scene that moves."""
    folder.mkdir()
    for number in range(12):
        rng = np.random.default_rng(number)
        scene = rng.integers(0, 255, (32, 43, 3)).repeat(16, 0).repeat(16, 1).astype(np.int16)
        frames = []
        for i in range(300):
            frame = np.roll(scene, (2 * i, 3 * i), (0, 1))[:256, :340]
            frames.append((frame + rng.normal(0, 4, frame.shape)).clip(0, 255).astype(np.uint8))
        write_media(
            folder / f"{number}.mp4",
            frames,
            tone(10.0),
            frame_rate=30,
            video_options={"preset": "medium", "crf": "23"},
        )
    return folder


def decode_all(paths: list[str]) -> int:
    """Decodes everything and counts the frames."""
    count = 0
    for path in paths:
        with av.open(path) as container:
            streams = [*container.streams.video[:1], *container.streams.audio[:1]]
            for stream in streams:
                stream.thread_type = "NONE"
            for frame in container.decode(streams):
                count += isinstance(frame, av.VideoFrame)
    return count


def ingest(unit: UnitIngester, paths: list[str], output: Path) -> None:
    """Turns the files into one shard."""
    for part in ("clips", "rejects"):
        (output / part).mkdir(parents=True)
    sources = tuple(UnitSource(path, path, path, 1, None, None, None) for path in paths)
    for row in unit({"unit": Unit("unit", sources).to_json()}):
        assert not row["failed"]
    shutil.rmtree(output)


def cpu_seconds(work) -> float:
    """CPU time of this process and of the decoder that it keeps."""
    before = used()
    work()
    return used() - before


def used() -> float:
    """User and system time until now."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children())]
    return sum(time.user + time.system for time in times)


if __name__ == "__main__":
    main()

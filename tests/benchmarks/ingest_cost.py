"""What does ingest cost: CPU, storage and memory, and what would a large corpus need?

    python tests/benchmarks/ingest_cost.py [input=FOLDER] [videos=200] [repeats=5] [long_minutes=10]

Without a folder it makes 12 clips of 10 s, 340 x 256, 30 frames a second, with sound; of a folder
it takes a random sample of so many files that can be opened. Ingest is one unit, decoder process
and writing included, without Ray and without the start of the process, which serves many units.
Beside it a bare loop decodes every frame and every sample of the same files and keeps nothing. Both
are measured in CPU seconds of all processes, in turns. The table of what a corpus would need
follows from the CPU and the bytes of an hour of video. Last, a new worker ingests 48 times a file
of 10 s, and another one that and a file of `long_minutes`: how much memory it and its largest
decoder had at most. Each file has a decoder of its own, so these are looked at every 10 ms.
"""

import json
import multiprocessing
import random
import shutil
import statistics
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import psutil
from cpu_time import tree_cpu_seconds
from program import environment, most_memory, options

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipelines.config.ingest import IngestSettings
from pipelines.ingest.unit import Unit, UnitSource
from pipelines.ingest.worker import UnitIngester
from pipelines.media.container import DecodeError
from pipelines.media.streams.selection import probe
from tests.helpers.media import tone, write_media

DEFAULTS = {"input": "", "videos": "200", "repeats": "5", "long_minutes": "10"}
CORPORA = {"Kinetics-400": 260_000, "AudioSet": 2_100_000, "100 million clips": 100_000_000}
"""Videos of ten seconds, about."""
CORES = (16, 256)


def main() -> None:
    """Prints tables, and one JSON line last."""
    given = options(DEFAULTS)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folder = Path(given["input"]) if given["input"] else make(root / "media")
        paths = sample(folder, int(given["videos"]))
        results = measure(paths, root / "out", int(given["repeats"]))
        print_plan(results)
        results |= peaks(root, float(given["long_minutes"]))
    line = {"benchmark": "ingest_cost", **environment("av", "pyarrow")}
    print(json.dumps(line | {"settings": given, "results": results}))


def sample(folder: Path, count: int) -> list[str]:
    """Gives a random sample of the files that FFmpeg opens."""
    paths = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    random.Random(0).shuffle(paths)
    chosen: list[str] = []
    for path in paths:
        if len(chosen) == count:
            break
        try:
            probe(path)
        except DecodeError:
            continue
        chosen.append(path)
    return chosen


def measure(paths: list[str], output: Path, repeats: int) -> dict[str, float]:
    """Takes turns between the bare loop and ingest."""
    num_frames = decode_all(paths)
    unit = UnitIngester(str(output), IngestSettings().model_dump(mode="json"))
    hours, num_bytes = ingest(unit, paths, output)
    bare, ingested = [], []
    for _ in range(repeats):
        bare.append(tree_cpu_seconds(lambda: decode_all(paths)))
        ingested.append(tree_cpu_seconds(lambda: ingest(unit, paths, output)))
    unit.close()
    ratios = [one / other for one, other in zip(ingested, bare, strict=True)]
    results = {
        "videos": len(paths),
        "video_hours": hours,
        "bare_frames_per_cpu_second": num_frames / statistics.median(bare),
        "ingest_frames_per_cpu_second": num_frames / statistics.median(ingested),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "cpu_seconds_per_video_hour": statistics.median(ingested) / hours,
        "bytes_per_video_hour": num_bytes / hours,
        "source_bytes_per_video_hour": sum(Path(path).stat().st_size for path in paths) / hours,
    }
    for name, value in results.items():
        print(f"{name:30} {value:16,.4g}" if value < 1000 else f"{name:30} {value:16,.0f}")
    return results


def print_plan(results: dict[str, float]) -> None:
    """Says what corpora of videos like these would need."""
    print(
        "| corpus | videos | video-hours | CPU-hours | "
        + "".join(f"hours on {cores} cores | " for cores in CORES)
        + "clip dataset |"
    )
    print("|---|" + "---|" * (4 + len(CORES)))
    for name, videos in CORPORA.items():
        hours = videos * 10 / 3600
        cpu_hours = hours * results["cpu_seconds_per_video_hour"] / 3600
        terabytes = hours * results["bytes_per_video_hour"] / 1e12
        on_cores = "".join(f"{cpu_hours / cores:,.1f} | " for cores in CORES)
        print(
            f"| {name} | {videos:,} | {hours:,.0f} | {cpu_hours:,.0f} | {on_cores}"
            f"{terabytes:,.1f} TB |"
        )


def peaks(root: Path, long_minutes: float) -> dict[str, float]:
    """The most memory of a worker and its decoder, with short files alone and with a long one."""
    folder = make(root / "short", 4)
    # So often that several row groups fill, as in any shard.
    short = 12 * sorted(map(str, folder.iterdir()))
    long = str(repeat(Path(short[0]), root / "long.mp4", round(6 * long_minutes)))
    found: dict[str, float] = {"long_minutes": long_minutes}
    for what, paths in (("without_long", short), ("with_long", [*short, long])):
        # A process that has done nothing yet.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            worker, decoder = pool.apply(peak, (paths, root / what))
        found |= {f"worker_bytes_{what}": worker, f"decoder_bytes_{what}": decoder}
        print(f"{what:30} worker {worker / 1e6:.1f} MB, a decoder {decoder / 1e6:.1f} MB")
    return found


def peak(paths: list[str], output: Path) -> tuple[int, int]:
    """The most memory of this process and of a decoder while it turns files into a shard."""
    unit = UnitIngester(str(output), IngestSettings().model_dump(mode="json"))
    most = 0
    is_over = threading.Event()

    def look() -> None:
        nonlocal most
        while not is_over.wait(0.01):
            for process in psutil.Process().children(recursive=True):
                with suppress(OSError, IndexError):  # it may end, and then has no memory to tell of
                    most = max(most, most_memory(process.pid))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        ingest(unit, paths, output)
    finally:
        is_over.set()
        looking.join()
    unit.close()
    return most_memory(), most


def repeat(source: Path, target: Path, times: int) -> Path:
    """Writes the packets of a file so many times, one after another."""
    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        streams = {s.index: written.add_stream_from_template(s) for s in read.streams}
        packets = [packet for packet in read.demux() if packet.dts is not None]
        bytes_of = [bytes(packet) for packet in packets]
        for number in range(times):
            for packet, data in zip(packets, bytes_of, strict=True):
                copy = av.Packet(data)
                # A little more than the ten seconds, because sound is longer by a frame.
                offset = round(10.25 * number / float(packet.time_base))
                copy.time_base, copy.duration = packet.time_base, packet.duration
                copy.pts, copy.dts = packet.pts + offset, packet.dts + offset
                copy.is_keyframe = packet.is_keyframe
                copy.stream = streams[packet.stream_index]
                written.mux(copy)
    return target


def make(folder: Path, num_clips: int = 12) -> Path:
    """Writes clips of a noisy scene that moves."""
    folder.mkdir()
    for number in range(num_clips):
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


def ingest(unit: UnitIngester, paths: list[str], output: Path) -> tuple[float, int]:
    """Turns the files into one shard; gives the hours that are in it, and its bytes."""
    for part in ("clips", "rejects"):
        (output / part).mkdir(parents=True)
    sources = tuple(UnitSource(path, path, path, 1, None, None, None) for path in paths)
    seconds = 0.0
    for row in unit({"unit": Unit("unit", sources).to_json()}):
        assert not row["failed"]
        seconds += row["seconds"]
    num_bytes = sum(path.stat().st_size for path in output.rglob("*.parquet"))
    shutil.rmtree(output)
    return seconds / 3600, num_bytes


if __name__ == "__main__":
    main()

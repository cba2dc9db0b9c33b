"""What does decoding cost, beside the ffmpeg command and a plain script that do the same?

    python tests/benchmarks/decoder_cost.py input=FOLDER [videos=40] [skip=0] [repeats=3] \
        [min_side=352] [max_side=720]

`skip` leaves out the first files of the sample, so that it can be measured in pieces.

All of them turn the same files into the same frames and samples: 8 frames a second with a short
side of 128, 16-bit mono at 16 kHz. CPU seconds of all processes are counted, in turns:

* ingest: one unit, from the files to a shard, without Ray and without the start of the processes;
* ours: through the decoder's processes, one a file and confined, segments handed over;
* reused: the same code in one process for all files, not confined, which is what safety costs;
* scan: opening the files and reading their packets, which is a part of ours;
* ffmpeg: the command with one thread, a process for each file, its output read from pipes;
* torchcodec, where it is installed: frames by time with one thread, scaled by torch, and the sound;
* PyAV: a script that decodes every frame, converts those that are needed, and resamples;
* bare: the same script when it keeps nothing, which is what decoding alone costs.

Frames and samples of ffmpeg are compared with ours first: frames may differ by a rounded pixel
value, and by one frame where a timestamp lies on the border of a tick.
"""

import json
import random
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Interpolation

from pipelines.config.ingest import IngestSettings
from pipelines.ingest.unit import Unit, UnitSource
from pipelines.ingest.worker import UnitIngester
from pipelines.media.container import DecodeError, open_source
from pipelines.media.decoder.process import DecoderProcess
from pipelines.media.packets import scan_packets
from tests.benchmarks.cpu_time import tree_cpu_seconds
from tests.benchmarks.program import environment, options
from tests.helpers.reused_decoder import ReusedDecoder

DEFAULTS = {"input": "", "videos": "40", "skip": "0", "repeats": "3"}
DEFAULTS |= {"min_side": "352", "max_side": "720"}
FRAME_RATE, SHORT_SIDE, SAMPLE_RATE = 8, 128, 16_000
SETTINGS = {
    "segment_seconds": 5.0,
    "min_segment_seconds": 0.5,
    "frame_rate": float(FRAME_RATE),
    "short_side": SHORT_SIDE,
    "sample_rate": SAMPLE_RATE,
}
INGEST = IngestSettings(
    segment_seconds=5.0,
    min_segment_seconds=0.5,
    frame_rate=float(FRAME_RATE),
    short_side=SHORT_SIDE,
)


def main() -> None:
    """Prints a table, and one JSON line last."""
    given = options(DEFAULTS)
    limits: dict[str, Any] = {"max_memory_bytes": 2_000_000_000, "timeout_seconds": 3600.0}
    decoder, reused = DecoderProcess(**limits), ReusedDecoder(**limits)
    sides = range(int(given["min_side"]), int(given["max_side"]) + 1)
    first = int(given["skip"])
    paths = sample(Path(given["input"]), first + int(given["videos"]), decoder, sides)[first:]
    unit = UnitIngester("/dev/shm/decoder_cost", INGEST.model_dump(mode="json"))
    sizes = {path: output_size(decoder, path) for path in paths}
    differences = compare(decoder, sizes)
    paths = list(differences)
    ways: dict[str, Callable[[], object]] = {
        "ingest": lambda: ingest(unit, paths, Path("/dev/shm/decoder_cost")),
        "ours": lambda: [list(decoder.segments(path, **SETTINGS)) for path in paths],
        "reused": lambda: [list(reused.segments(path, **SETTINGS)) for path in paths],
        "scan": lambda: [scan(path) for path in paths],
        "ffmpeg": lambda: [by_command(path, sizes[path]) for path in paths],
        "torchcodec": lambda: [by_torchcodec(path, sizes[path]) for path in paths],
        "PyAV": lambda: [by_script(path, sizes[path]) for path in paths],
        "bare": lambda: [by_script(path, None) for path in paths],
    }
    if not find_spec("torchcodec"):
        print(f"torchcodec left out: {ways.pop('torchcodec') and 'it is not installed'}")
    ways["ingest"](), ways["reused"]()  # starts their processes
    num_frames = sum(by_script(path, None) for path in paths)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(int(given["repeats"])):
        for name, way in ways.items():
            seconds[name].append(tree_cpu_seconds(way))
    for started in (decoder, reused, unit):
        started.close()
    results: dict[str, object] = {"videos": len(paths), "source_frames": num_frames}
    for name, values in seconds.items():
        micros = [1e6 * value / num_frames for value in values]
        beside = [a / b for a, b in zip(values, seconds["ffmpeg"], strict=True)]
        results[name] = {
            "cpu_microseconds_per_source_frame": statistics.median(micros),
            "of_ffmpeg": statistics.median(beside),
            "of_ffmpeg_min": min(beside),
            "of_ffmpeg_max": max(beside),
        }
        if name == "ours":
            ratios = [a / b for a, b in zip(values, seconds["reused"], strict=True)]
            results["ours_of_reused"] = [statistics.median(ratios), min(ratios), max(ratios)]
            files = [
                1e3 * (a - b) / len(paths) for a, b in zip(values, seconds["reused"], strict=True)
            ]
            results["milliseconds_a_file_beyond_reused"] = statistics.median(files)
        print(
            f"{name:8} {statistics.median(micros):8.1f} us a source frame, "
            f"{statistics.median(beside):.2f} of ffmpeg ({min(beside):.2f} to {max(beside):.2f})"
        )
    results["median_difference"] = statistics.median(differences.values())
    results["largest_difference"] = max(differences.values())
    print(f"pixel values apart from ffmpeg's: {results['median_difference']:.2f} in the median")
    print("ours beside reused:", results["ours_of_reused"])
    command = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True)
    results["ffmpeg"] = command.stdout.partition("\n")[0]
    line = {"benchmark": "decoder_cost", **environment("av")}
    print(json.dumps(line | {"settings": given, "results": results}))


def sample(folder: Path, count: int, decoder: DecoderProcess, sides: range) -> list[str]:
    """A random sample of the files of a folder that give a picture all through."""
    paths = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    random.Random(0).shuffle(paths)
    chosen: list[str] = []
    for path in paths:
        if len(chosen) == count:
            break
        try:
            if declared_side(path) not in sides:
                continue
            segments = list(decoder.segments(path, **SETTINGS))
        except DecodeError:
            continue
        if all(segment.frames is not None for segment in segments):
            chosen.append(path)
    return chosen


def declared_side(path: str) -> int:
    """Pixels of the shorter side, as the container says."""
    with open_source(path) as container:
        return min(
            (min(v.codec_context.width, v.codec_context.height) for v in container.streams.video),
            default=0,
        )


def output_size(decoder: DecoderProcess, path: str) -> tuple[int, int]:
    """Width and height of the frames that are stored of a file."""
    frames = next(iter(list(decoder.segments(path, **SETTINGS)))).frames
    assert frames is not None
    return frames.shape[2], frames.shape[1]


def compare(decoder: DecoderProcess, sizes: dict[str, tuple[int, int]]) -> dict[str, float]:
    """How far our frames are from those of ffmpeg; leaves out what others decode otherwise."""
    found = {}
    for path, size in sizes.items():
        try:
            by_script(path, None)
            found[path] = difference(decoder, path, size)
        # The command takes the first stream, ours the best one; the script ends at damage.
        except (AssertionError, FFmpegError, subprocess.CalledProcessError) as error:
            print(f"left out, because others decode something else: {path}: {error}")
    return found


def difference(decoder: DecoderProcess, path: str, size: tuple[int, int]) -> float:
    """How far our frames are from those of ffmpeg, as a mean of pixel values.

    Each is compared with the nearest of the frame of ffmpeg at its tick and those beside it.

    Raises:
        AssertionError: If frames or samples are others.
    """
    segments = list(decoder.segments(path, **SETTINGS))
    ours = np.concatenate([segment.frames for segment in segments if segment.frames is not None])
    theirs, samples = by_command(path, size)
    assert abs(len(ours) - len(theirs)) <= 6, f"{path}: {len(ours)} and {len(theirs)} frames"
    count = min(len(ours), len(theirs))
    apart = [
        min(
            float(np.abs(ours[at].astype(int) - theirs[beside]).mean())
            for beside in range(max(0, at - 1), min(len(theirs), at + 2))
        )
        for at in range(count)
    ]
    sounds = [segment.waveform for segment in segments if segment.waveform is not None]
    heard = sum(len(sound) for sound in sounds) / SAMPLE_RATE
    seconds = len(ours) / FRAME_RATE
    assert not sounds or len(samples) / SAMPLE_RATE >= min(heard, seconds) - 0.5, path
    return statistics.median(apart)


def scan(path: str) -> None:
    """Opens a file and reads its packets."""
    with open_source(path) as container:
        scan_packets(container, [*container.streams.video[:1], *container.streams.audio[:1]])


def by_command(path: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Frames and samples as the ffmpeg command gives them."""
    # Ticks are counted from the first frame, as ours are.
    scale = f"setpts=PTS-STARTPTS,fps={FRAME_RATE},scale={size[0]}:{size[1]}:flags=area"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        files = [Path(folder) / "frames", Path(folder) / "samples"]
        command = ["ffmpeg", "-v", "error", "-threads", "1", "-filter_threads", "1", "-i", path]
        picture = ["-map", "0:v:0", "-vf", scale, "-pix_fmt", "rgb24", "-f", "rawvideo"]
        sound = ["-map", "0:a:0?", "-ac", "1", "-ar", str(SAMPLE_RATE), "-f", "s16le"]
        outputs = [*picture, str(files[0])]
        with av.open(path) as container:
            if container.streams.audio:
                outputs += [*sound, str(files[1])]
        subprocess.run([*command, *outputs], check=True, stdin=subprocess.DEVNULL)
        frames = np.frombuffer(files[0].read_bytes(), np.uint8).reshape(-1, size[1], size[0], 3)
        samples = np.frombuffer(files[1].read_bytes() if files[1].exists() else b"", np.int16)
    return frames, samples


def by_torchcodec(path: str, size: tuple[int, int]) -> tuple[object, object]:
    """Frames at the middles of ticks, and samples, as torchcodec gives them."""
    import torch
    from torchcodec.decoders import AudioDecoder, VideoDecoder

    torch.set_num_threads(1)
    decoder = VideoDecoder(path, num_ffmpeg_threads=1)
    begin, end = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
    middles = np.arange(begin + 0.5 / FRAME_RATE, end, 1 / FRAME_RATE).tolist()
    kept = []
    for first in range(0, len(middles), 40):  # a segment at a time, as ours
        frames = decoder.get_frames_played_at(middles[first : first + 40]).data.float()
        kept.append(torch.nn.functional.interpolate(frames, size[::-1], mode="area").byte())
    with av.open(path) as container:
        has_sound = bool(container.streams.audio)
    sound = AudioDecoder(path, sample_rate=SAMPLE_RATE, num_channels=1) if has_sound else None
    return kept, sound.get_all_samples() if sound else None


def ingest(unit: UnitIngester, paths: list[str], output: Path) -> None:
    """Turns the files into one shard."""
    for part in ("clips", "rejects"):
        (output / part).mkdir(parents=True, exist_ok=True)
    sources = tuple(UnitSource(path, path, path, 1, None, None, None) for path in paths)
    for row in unit({"unit": Unit("unit", sources).to_json()}):
        if row["failed"] or row["reason"]:
            raise SystemExit(str(row))
    shutil.rmtree(output)


def by_script(path: str, size: tuple[int, int] | None) -> int:
    """Decodes everything, and keeps what a tick shows where a size is given; counts frames."""
    count, next_tick = 0, 0
    kept = []
    with av.open(path) as container:
        streams = [*container.streams.video[:1], *container.streams.audio[:1]]
        for stream in streams:
            stream.codec_context.thread_count = 1
            stream.codec_context.thread_type = "NONE"
        resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
        for frame in container.decode(streams):
            if isinstance(frame, av.AudioFrame):
                if size is not None:
                    frame.pts = None
                    kept += [part.to_ndarray() for part in resampler.resample(frame)]
                continue
            count += 1
            tick = int(count * FRAME_RATE / float(streams[0].average_rate or 25) + 0.5)
            if size is not None and tick > next_tick:
                small = frame.reformat(*size, "rgb24", interpolation=Interpolation.AREA)
                kept += [small.to_ndarray()] * (tick - next_tick)
                next_tick = tick
    return count


if __name__ == "__main__":
    main()

"""A folder of made clips: what the jobs run on when they are given no media.

The clips come in the containers and codecs that folders of media come in, with two broken files
among them. A file follows from the seed and its number alone, so the folder has the same bytes
for any number of threads. It is made beside its place and moved there whole; a folder that is
there is therefore complete, and its stamp says from which settings.
"""

import io
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.stream import VideoStream

from pipelines.config.ingest import SyntheticSettings
from pipelines.errors import UserError
from pipelines.files import locked, replacing
from pipelines.sources.synthetic_patterns import KINDS
from pipelines.sources.synthetic_scenes import Scene, make_scene

VERSION = 2
"""Goes up whenever the same settings would give other clips."""
STAMP = ".made_clips.json"
NUM_BROKEN = 2
_PATIENCE_SECONDS = 3600.0
"""How long one process waits for another that makes the same folder."""


class Encoding(NamedTuple):
    """A way of putting a scene into a file."""

    extension: str
    container: str
    video_codec: str
    pixel_format: str
    video_options: dict[str, str]
    audio_codec: str
    sample_format: str
    sample_rates: tuple[int, ...]


_X264 = {"preset": "ultrafast", "crf": "23"}
_X265 = {"preset": "ultrafast", "crf": "26", "x265-params": "log-level=none:pools=1"}
_VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "30"}
_VP8 = {"deadline": "realtime", "cpu-used": "-8", "crf": "30"}  # at 8 it heeds the clock
_MPEG4 = {"qscale": "4"}
ENCODINGS = (
    Encoding("mp4", "mp4", "libx264", "yuv420p", _X264, "aac", "fltp", (48_000, 44_100, 16_000)),
    Encoding("mkv", "matroska", "libx264", "yuv444p", _X264, "flac", "s16", (48_000, 16_000)),
    Encoding("webm", "webm", "libvpx-vp9", "yuv420p", _VP9, "libopus", "s16", (48_000,)),
    Encoding("avi", "avi", "mpeg4", "yuv420p", _MPEG4, "libmp3lame", "s16p", (44_100, 22_050)),
    Encoding("mov", "mov", "mpeg4", "yuv420p", _MPEG4, "pcm_s16le", "s16", (32_000, 16_000)),
    Encoding("ts", "mpegts", "libx264", "yuv420p", _X264, "aac", "fltp", (48_000, 32_000)),
    Encoding("webm", "webm", "libvpx", "yuv420p", _VP8, "libopus", "s16", (24_000,)),
    Encoding("mkv", "matroska", "libx265", "yuv420p", _X265, "ac3", "fltp", (48_000, 32_000)),
    Encoding("avi", "avi", "mjpeg", "yuvj420p", {"qscale": "4"}, "pcm_s16le", "s16", (22_050,)),
)


def make_clips(
    folder: Path, config: SyntheticSettings, on_progress: Callable[[int, int], None]
) -> None:
    """Makes `folder/{train,test}/<kind>/<kind>_NNN.<extension>`, unless it is there already.

    Args:
        folder: Absent, empty, or made before from the same settings.
        config: How many clips, how many of them held out, and the seed.
        on_progress: Called with the number of files made so far and of all files.

    Raises:
        UserError: If the folder holds anything else, or cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock")
        with locked(lock, str(folder), patience_seconds=_PATIENCE_SECONDS):
            if not _is_made(folder, config):
                _make_whole(folder, config, on_progress)
    except OSError as error:
        raise UserError(f"cannot write the made clips to {folder}: {error.strerror}") from error


def num_files(config: SyntheticSettings) -> int:
    """Files of the folder, the two broken ones counted."""
    return config.num_clips + NUM_BROKEN


def encode(scene: Scene, encoding: Encoding) -> bytes:
    """The file's bytes; they follow from the scene and the versions of the libraries alone."""
    file = io.BytesIO()
    options = {"fflags": "+bitexact"}  # no date, no random ids
    with av.open(file, "w", format=encoding.container, options=options) as output:
        video = output.add_stream(encoding.video_codec, rate=scene.frame_rate)
        layout = "mono" if scene.waveform.shape[1] == 1 else "stereo"
        audio = output.add_stream(encoding.audio_codec, rate=scene.sample_rate, layout=layout)
        assert isinstance(video, VideoStream)
        assert isinstance(audio, AudioStream)
        video.height, video.width = scene.frames.shape[1:3]
        video.pix_fmt = encoding.pixel_format
        video.options = dict(encoding.video_options)
        video.gop_size = scene.frame_rate
        audio.format = encoding.sample_format
        for stream in (video, audio):
            stream.codec_context.thread_count = 1
            stream.codec_context.flags |= Flags.bitexact
        _mux(output, video, audio, scene)
    return file.getvalue()


def _is_made(folder: Path, config: SyntheticSettings) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    wanted, found = _stamp(config), _read_stamp(folder / STAMP)
    different = [
        f"{name} {found.get(name)} instead of {value}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if different:
        what = f"made clips with {', '.join(different)}" if found else "other files"
        raise UserError(f"{folder} holds {what}; remove it, or take another output")
    return True


def _stamp(config: SyntheticSettings) -> dict[str, Any]:
    return {"version": VERSION, **config.model_dump(mode="json")}


def _read_stamp(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _make_whole(
    folder: Path, config: SyntheticSettings, on_progress: Callable[[int, int], None]
) -> None:
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with replacing(folder) as temporary:
        _make_files(temporary, config, on_progress)
        stamp = json.dumps(_stamp(config), indent=2, sort_keys=True)
        (temporary / STAMP).write_text(stamp + "\n", encoding="utf-8")


def _make_files(
    folder: Path, config: SyntheticSettings, on_progress: Callable[[int, int], None]
) -> None:
    total = num_files(config)
    # Threads are enough: NumPy and FFmpeg both work without the interpreter's lock.
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as executor:
        jobs = [executor.submit(_make_file, folder, config, number) for number in range(total)]
        try:
            for num_made, job in enumerate(as_completed(jobs), start=1):
                job.result()
                on_progress(num_made, total)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _make_file(folder: Path, config: SyntheticSettings, number: int) -> None:
    if number < config.num_clips:
        place, content = _clip(config, number)
    else:
        place, content = _broken(config, number - config.num_clips)
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _clip(config: SyntheticSettings, number: int) -> tuple[str, bytes]:
    """Place and content of a clip; of each kind the same share is held out."""
    rng = np.random.default_rng((config.seed, number))
    encoding = ENCODINGS[rng.integers(len(ENCODINGS))]
    kind_number, member = number % len(KINDS), number // len(KINDS)
    kind = list(KINDS)[kind_number]
    scene = make_scene(kind, rng, sample_rate=int(rng.choice(encoding.sample_rates)))
    turn = kind_number * -(-config.num_clips // len(KINDS)) + member
    held_out = int((turn + 1) * config.heldout_fraction) > int(turn * config.heldout_fraction)
    split = "test" if held_out else "train"
    return f"{split}/{kind}/{kind}_{member:03d}.{encoding.extension}", encode(scene, encoding)


def _broken(config: SyntheticSettings, number: int) -> tuple[str, bytes]:
    """Place and content of a broken file: an mp4 without its end, and noise."""
    kind = list(KINDS)[number]
    rng = np.random.default_rng((config.seed, config.num_clips + number))
    if number == 0:
        whole = encode(make_scene(kind, rng, sample_rate=16_000), ENCODINGS[0])
        return f"train/{kind}/{kind}_cut.mp4", whole[: len(whole) // 2]
    return f"train/{kind}/{kind}_noise.mp4", rng.bytes(50_000)


def _mux(output: OutputContainer, video: VideoStream, audio: AudioStream, scene: Scene) -> None:
    """Writes both streams; the container sorts the packets by time."""
    output.start_encoding()  # opens the codecs: the sound's frame size is known only then
    for picture in scene.frames:
        output.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    output.mux(video.encode())
    sound = av.AudioFrame.from_ndarray(
        scene.waveform.reshape(1, -1), format="s16", layout=audio.layout.name
    )
    sound.sample_rate, sound.pts = scene.sample_rate, 0
    resampler = av.AudioResampler(
        audio.format, audio.layout, scene.sample_rate, audio.codec_context.frame_size or None
    )
    for block in [*resampler.resample(sound), *resampler.resample(None)]:
        output.mux(audio.encode(block))
    output.mux(audio.encode())

"""A folder of synthetic clips, on which jobs run when no media is given.

The clips use the containers and codecs of real media folders, and two files are broken. Each file
depends only on the seed and its number, so the folder has the same bytes for any number of threads.
The folder is written under a temporary name and then renamed. An existing folder is therefore
complete, and its stamp records its settings.
"""

import io
import json
import os
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
from pipelines.files import locked, replacing, write_failure
from pipelines.sources.synthetic_patterns import KINDS
from pipelines.sources.synthetic_scenes import Scene, make_scene
from pipelines.storage import AnyPath, RemotePath, remove_tree

VERSION = 2
"""Version of the generator, raised whenever the same settings produce other clips."""
STAMP = ".made_clips.json"
NUM_BROKEN = 2
_PATIENCE_SECONDS = 3600.0
"""Maximum wait for another process that makes the same folder, in seconds."""


class Encoding(NamedTuple):
    """The container and codecs of a file."""

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
_VP8 = {"deadline": "realtime", "cpu-used": "-8", "crf": "30"}  # 8 depends on wall-clock time
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
    folder: AnyPath, config: SyntheticSettings, on_progress: Callable[[int, int], None]
) -> None:
    """Makes `folder/{train,test}/<kind>/<kind>_NNN.<extension>`, unless it exists.

    Args:
        folder: A path that is missing, empty, or was made with the same settings.
        config: The number of clips, the held-out fraction, and the seed.
        on_progress: A callback that takes the number of files made and the total.

    Raises:
        UserError: If the folder holds other files, or cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock")
        with locked(lock, str(folder), patience_seconds=_PATIENCE_SECONDS):
            if not _is_made(folder, config):
                _make_whole(folder, config, on_progress)
    except OSError as error:
        raise UserError(
            f"cannot write the made clips to {folder}: {write_failure(error)}"
        ) from error


def num_files(config: SyntheticSettings) -> int:
    """Returns the number of files in the folder, including the broken ones."""
    return config.num_clips + NUM_BROKEN


def encode(scene: Scene, encoding: Encoding) -> bytes:
    """Returns the file's bytes, which depend only on the scene and library versions."""
    file = io.BytesIO()
    options = {"fflags": "+bitexact"}  # no dates or random IDs
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


def _is_made(folder: AnyPath, config: SyntheticSettings) -> bool:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    is_partial = isinstance(folder, RemotePath) and names <= {"train", "test"}
    if is_partial or not (names or folder.exists()):
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


def _read_stamp(path: AnyPath) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _make_whole(
    folder: AnyPath, config: SyntheticSettings, on_progress: Callable[[int, int], None]
) -> None:
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # left by killed processes
        remove_tree(left)
    with replacing(folder, last=STAMP) as temporary:
        _make_files(temporary, config, on_progress)
        stamp = json.dumps(_stamp(config), indent=2, sort_keys=True)
        (temporary / STAMP).write_text(stamp + "\n", encoding="utf-8")


def _make_files(
    folder: Path, config: SyntheticSettings, on_progress: Callable[[int, int], None]
) -> None:
    total = num_files(config)
    # Threads suffice, because NumPy and FFmpeg release the GIL.
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
        name, content = _clip(config, number)
    else:
        name, content = _broken(config, number - config.num_clips)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _clip(config: SyntheticSettings, number: int) -> tuple[str, bytes]:
    """Returns the path and content of a clip. Each kind has the same held-out fraction."""
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
    """Returns the path and content of a broken file: a truncated MP4, or noise."""
    kind = list(KINDS)[number]
    rng = np.random.default_rng((config.seed, config.num_clips + number))
    if number == 0:
        whole = encode(make_scene(kind, rng, sample_rate=16_000), ENCODINGS[0])
        return f"train/{kind}/{kind}_cut.mp4", whole[: len(whole) // 2]
    return f"train/{kind}/{kind}_noise.mp4", rng.bytes(50_000)


def _mux(output: OutputContainer, video: VideoStream, audio: AudioStream, scene: Scene) -> None:
    """Writes both streams. The container interleaves the packets by time."""
    output.start_encoding()  # opens the codecs, which sets the audio frame size
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

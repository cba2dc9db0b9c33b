"""Tiny media files that tests make, whose frames and sounds say what and when they are."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CODECS = {
    ".mp4": ("libx264", "aac"),
    ".webm": ("libvpx-vp9", "libopus"),
    ".mkv": ("libx264", "libopus"),
    ".avi": ("mjpeg", "pcm_s16le"),
    ".ts": ("libx264", "aac"),
    ".mov": ("mpeg4", "pcm_s16le"),
}
"""Picture and sound codecs by ending of the file."""
FAST = {
    "libx264": {"preset": "ultrafast", "crf": "12"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libx265": {"preset": "ultrafast", "x265-params": "crf=12:log-level=none"},
    "mpeg4": {"q": "2"},
}
DECODE = {
    "segment_seconds": 5.0,
    "min_segment_seconds": 1.0,
    "frame_rate": 8.0,
    "short_side": 48,
    "sample_rate": 16_000,
}
"""Settings of `decode_segments` for small and quick tests."""
DECODE_SHORT = DECODE | {"segment_seconds": 1.0, "min_segment_seconds": 0.5, "short_side": 32}
"""The same with segments of a second."""


def numbered_frame(number: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """Encodes a number below 256 in two gray halves, which survive lossy codecs."""
    width, height = size
    frame = np.empty((height, width, 3), np.uint8)
    frame[:, : width // 2] = number % 16 * 16 + 8
    frame[:, width // 2 :] = number // 16 % 16 * 16 + 8
    return frame


def frame_number(frame: np.ndarray) -> int:
    """Reads the number of a frame."""
    width = frame.shape[1]
    low = frame[:, width // 8 : width * 3 // 8].mean()
    high = frame[:, width * 5 // 8 : width * 7 // 8].mean()
    return int(high // 16 * 16 + low // 16)


def tone(seconds: float, sample_rate: int = 48_000, hertz: float = 440.0) -> np.ndarray:
    """A sine of half the loudest."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    return (16_000 * np.sin(2 * np.pi * hertz * time)).astype(np.int16)


def write_media(
    path: Path,
    frames: Sequence[np.ndarray] = (),
    waveform: np.ndarray | None = None,
    *,
    frame_rate: int | Fraction = 25,
    sample_rate: int = 48_000,
    layout: str = "mono",
    codecs: tuple[str, str] | None = None,
    pixel_format: str | None = None,
    frame_times: Sequence[float] | None = None,
    video_start: float = 0.0,
    audio_start: float = 0.0,
    rotation: int = 0,
    pixel_aspect: int = 1,
    options: dict[str, str] | None = None,
    video_options: dict[str, str] | None = None,
) -> Path:
    """Writes frames and sound, the same in all channels; `frame_times` makes the rate variable."""
    if video_start:
        frame_times = [video_start + float(i / frame_rate) for i in range(len(frames))]
    video_codec, audio_codec = codecs or CODECS[path.suffix]
    with av.open(str(path), "w", options=options or {}) as container:
        video = audio = None
        if len(frames):
            video = container.add_stream(
                video_codec, rate=frame_rate, options=video_options or FAST.get(video_codec, {})
            )
            video.height, video.width = frames[0].shape[:2]
            default_format = "yuvj420p" if video_codec == "mjpeg" else "yuv420p"
            video.pix_fmt = pixel_format or default_format
            video.codec_context.sample_aspect_ratio = Fraction(pixel_aspect)
            if rotation:
                video.set_display_rotation(rotation)
        if waveform is not None:
            audio = container.add_stream(audio_codec, rate=sample_rate, layout=layout)
        if video is not None:
            _write_video(container, video, frames, frame_rate, frame_times)
        if audio is not None:
            _write_audio(container, audio, waveform, sample_rate, audio_start)
    return path


def write_numbered(path: Path, num_frames: int, **how) -> Path:
    """Writes frames that carry their number, with a tone unless it is told another sound."""
    frame_rate = how.get("frame_rate", 25)
    frames = [numbered_frame(number) for number in range(num_frames)]
    how.setdefault("waveform", tone(num_frames / frame_rate))
    return write_media(path, frames, **how)


def write_growing(path: Path) -> Path:
    """Writes four seconds of small frames and then eight of 320 x 240, which a limit can refuse.

    Nothing at the beginning of the file says what will come.
    """
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    small = write_numbered(path.with_suffix(".1.ts"), 100, waveform=None)
    large = write_media(path.with_suffix(".2.ts"), [np.roll(noise, i) for i in range(200)])
    path.write_bytes(small.read_bytes() + large.read_bytes())
    small.unlink()
    large.unlink()
    return path


def timed_frame(number: int, is_flash: bool) -> np.ndarray:
    """A numbered frame with a third part that is white or black."""
    frame = np.zeros((48, 96, 3), np.uint8)
    frame[:, :64] = numbered_frame(number)
    frame[:, 64:] = 255 * is_flash
    return frame


def write_timed(
    path: Path, times: Sequence[float], seconds: float, frame_rate: Fraction, **how
) -> Path:
    """Writes numbered frames with a flash and a beep of a fifth of a second at each of the times.

    The sound of it is `sample_rate` a second; both streams can begin later than zero.
    """
    sample_rate = how.get("sample_rate", 48_000)
    instants = [float(i / Fraction(frame_rate)) for i in range(round(seconds * frame_rate))]
    frames = [
        timed_frame(i % 256, any(-1e-6 <= now - time < 0.2 for time in times))
        for i, now in enumerate(instants)
    ]
    now = np.arange(round(seconds * sample_rate)) / sample_rate
    waveform = tone(seconds, sample_rate, 1000.0)
    waveform[~np.any([(now >= time) & (now < time + 0.2) for time in times], axis=0)] = 0
    return write_media(path, frames, waveform, frame_rate=frame_rate, **how)


def write_flash_and_beep(path: Path, times: Sequence[float], seconds: float, **how) -> Path:
    """Writes a white flash of a fifth of a second, and a beep as long, at each of the times."""
    frame_rate, sample_rate = 25, 48_000
    instants = np.arange(round(seconds * frame_rate)) / frame_rate
    frames = [
        np.full((48, 64, 3), 255 * any(0 <= now - time < 0.2 - 1e-6 for time in times), np.uint8)
        for now in instants
    ]
    waveform = tone(seconds, sample_rate, 1000.0)
    now = np.arange(len(waveform)) / sample_rate
    waveform[~np.any([(now >= time) & (now < time + 0.2) for time in times], axis=0)] = 0
    return write_media(path, frames, waveform, **how)


def _write_video(container, stream, frames, frame_rate, frame_times) -> None:
    stream.codec_context.time_base = Fraction(1, 1000) if frame_times else 1 / Fraction(frame_rate)
    for number, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.time_base = stream.codec_context.time_base
        frame.pts = round(frame_times[number] * 1000) if frame_times else number
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _write_audio(container, stream, waveform, sample_rate, start) -> None:
    layout_format = stream.codec_context.format.name
    layout = stream.codec_context.layout.name
    resampler = av.AudioResampler(format=layout_format, layout=layout, rate=sample_rate)
    fifo = av.AudioFifo()
    num_channels = stream.codec_context.layout.nb_channels
    interleaved = waveform.repeat(num_channels)[None]
    source = av.AudioFrame.from_ndarray(interleaved, format="s16", layout=layout)
    source.sample_rate = sample_rate
    for frame in resampler.resample(source):
        frame.pts = None
        fifo.write(frame)
    position = round(start * sample_rate)
    size = stream.codec_context.frame_size or 1024
    while (frame := fifo.read(size, partial=True)) is not None:
        frame.pts, frame.time_base = position, Fraction(1, sample_rate)
        position += frame.samples
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))

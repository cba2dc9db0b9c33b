"""Scenes whose picture and sound say which moment they are, and how to read them back.

A picture shows its frame number in ten upright bars, bit 0 at the left; second s of the sound is a
sine of 400 + 40 s Hz. Frame 25 s and the tone of second s belong together.
"""

from fractions import Fraction
from pathlib import Path
from typing import IO

import av
import numpy as np

from pipelines.media.decode import decode_segments
from pipelines.media.segments import Segment
from tests.helpers.media import DECODE

RATE = 25
NUM_BARS = 10
SOUND_RATE = 48_000
SIZE = (80, 48)


def bars(number: int) -> np.ndarray:
    """The picture of a frame number below 1024."""
    width, height = SIZE
    on = [255 * (number >> bar & 1) for bar in range(NUM_BARS)]
    row = np.repeat(np.array(on, np.uint8), width // NUM_BARS)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def read_bars(frame: np.ndarray) -> int:
    """The number that a picture's bars say."""
    height, width = frame.shape[:2]
    rows = frame[height // 4 : height * 3 // 4]
    edges = [(int((b + 0.3) * width / 10), int((b + 0.7) * width / 10) + 1) for b in range(10)]
    return sum(int(rows[:, a:b].mean() > 128) << index for index, (a, b) in enumerate(edges))


def tones(first: float, stop: float) -> np.ndarray:
    """The sound of a stretch of the scene."""
    now = np.arange(round(first * SOUND_RATE), round(stop * SOUND_RATE)) / SOUND_RATE
    hertz = 400 + 40 * np.floor(now + 1e-9)
    return (16_000 * np.sin(2 * np.pi * hertz * (now - np.floor(now)))).astype(np.int16)


def heard(waveform: np.ndarray, rate: int = 16_000) -> list[int | None]:
    """The second that is heard in the middle of each tick of an eighth, None for silence."""
    ticks = []
    step = rate // 8
    for start in range(0, len(waveform) - step + 1, step):
        piece = waveform[start : start + step].astype(float)
        spectrum = np.abs(np.fft.rfft(piece * np.hanning(step), 16 * step))
        hertz = spectrum.argmax() * rate / (16 * step)
        # A tick that is mostly silent is silent.
        ticks.append(None if np.median(np.abs(piece)) < 500 else round((hertz - 400) / 40))
    return ticks


def decode(path: Path | str | int | IO[bytes], **changes) -> list[Segment]:
    """The segments of a source, at the settings that the scenes are read with."""
    settings = DECODE | {"min_segment_seconds": 1.1}
    source = path if hasattr(path, "read") or isinstance(path, int) else str(path)
    return list(decode_segments(source, **(settings | changes)))


def seen_and_heard(segments: list[Segment]) -> tuple[list[int | None], list[int | None]]:
    """Frame number and second of each tick of a source, None where there is nothing."""
    seen: list[int | None] = []
    sounds: list[int | None] = []
    for segment in segments:
        num_ticks = round(8 * segment.duration_seconds)
        index = round(8 * segment.start_seconds)
        for ticks in (seen, sounds):
            ticks += [None] * (index - len(ticks))
        frames = segment.frames
        seen += [None] * num_ticks if frames is None else [read_bars(frame) for frame in frames]
        sound = segment.waveform
        sounds += [None] * num_ticks if sound is None else heard(sound)
    return seen, sounds


def mismatches(segments: list[Segment], late: float = 0.0) -> list[tuple[int, int, int]]:
    """Ticks at which picture and sound of different moments meet, with both.

    Where the tone changes, or sound begins or ends, a tick can be heard as another second, so the
    ticks beside it have to agree with it.
    """
    found = []
    seen, sounds = seen_and_heard(segments)
    for tick, (frame, second) in enumerate(zip(seen, sounds, strict=True)):
        beside = sounds[max(0, tick - 1) : tick + 2]
        if frame is None or second is None or set(beside) != {second}:
            continue
        moment = frame / RATE
        nearest = min(max(moment, float(second)), second + 1.0)
        if abs(moment - nearest) > 0.13 + late:
            found.append((tick, frame, second))
    return found


def write_scene(
    path: Path,
    first: float,
    stop: float,
    *,
    codecs: tuple[str, str] = ("libx264", "aac"),
    bframes: int = 0,
    sound: tuple[float, float] | None = None,
    picture: tuple[float, float] | None = None,
    waveform: np.ndarray | None = None,
    offset: float = 0.0,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    pix_fmt: str | None = None,
    sound_rate: int = SOUND_RATE,
) -> Path:
    """Writes a stretch of the scene; its clock starts at `offset`.

    `sound` and `picture` are the stretches of the scene in which each is there, `codec_options`
    those of the picture's encoder.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        picture = picture or (first, stop)
        sound = sound or (first, stop)
        video = audio = None
        if codecs[0]:
            video = container.add_stream(codecs[0], rate=RATE)
            video.width, video.height = SIZE
            video.pix_fmt = pix_fmt or ("yuvj420p" if codecs[0] == "mjpeg" else "yuv420p")
            video.options = {"bf": str(bframes), "g": "25"} | (
                {"preset": "veryfast", "crf": "14"} if codecs[0] == "libx264" else {"q": "2"}
            )
            video.options |= codec_options or {}
            video.codec_context.time_base = Fraction(1, RATE)
        if codecs[1]:
            audio = container.add_stream(codecs[1], rate=sound_rate, layout="mono")
        packets = []
        if video is not None:
            packets += _encoded_picture(video, first, picture, offset)
        if audio is not None:
            waveform = tones(*sound) if waveform is None else waveform
            packets += _encoded_sound(audio, waveform, sound[0] - first + offset, sound_rate)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def _encoded_picture(stream, first, picture, offset) -> list:
    packets = []
    for number in range(round(picture[0] * RATE), round(picture[1] * RATE)):
        frame = av.VideoFrame.from_ndarray(bars(number), format="rgb24")
        frame.time_base = Fraction(1, RATE)
        frame.pts = number - round((first - offset) * RATE)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def _encoded_sound(stream, waveform, start, rate) -> list:
    packets = []
    resampler = av.AudioResampler(stream.codec_context.format.name, "mono", rate)
    size = stream.codec_context.frame_size or 1024
    fifo = av.AudioFifo()
    source = av.AudioFrame.from_ndarray(waveform[None], format="s16", layout="mono")
    source.sample_rate = SOUND_RATE
    for frame in resampler.resample(source):
        frame.pts = None
        fifo.write(frame)
    position = round(start * rate)
    while (frame := fifo.read(size, partial=True)) is not None:
        frame.pts, frame.time_base = position, Fraction(1, rate)
        position += frame.samples
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def remux(
    source: Path,
    target: Path,
    move,
    options: dict[str, str] | None = None,
    *,
    all_key: bool = False,
) -> Path:
    """Copies packets; `move(kind, seconds, number)` gives the time of each, None to drop it.

    `all_key` marks all pictures as key pictures.
    """
    with av.open(str(source)) as read, av.open(str(target), "w", options=options or {}) as out:
        streams = {s.index: out.add_stream_from_template(s) for s in read.streams}
        counts = dict.fromkeys(streams, 0)
        packets = []
        for packet in read.demux():
            if not packet.size:
                continue
            dts = packet.dts if packet.dts is not None else packet.pts
            number = counts[packet.stream_index]
            counts[packet.stream_index] += 1
            now = float(dts * packet.time_base)
            then = move(packet.stream.type, now, number)
            if then is None:
                continue
            shift = round((then - now) / packet.time_base)
            pts, index = packet.pts + shift, packet.stream_index
            packet.stream = streams[index]
            packet.pts, packet.dts = pts, dts + shift
            packet.is_keyframe |= all_key
            packets.append(packet)
        for packet in packets:
            out.mux(packet)
    return target


def joined(target: Path, *parts: Path) -> Path:
    """Puts files one after another, as `cat` does."""
    target.write_bytes(b"".join(part.read_bytes() for part in parts))
    return target

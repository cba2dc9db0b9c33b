"""Kinds of files that are in the standards and seldom on a desk, each read back as numbers."""

import random
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.helpers.timed_scenes import (
    RATE,
    SIZE,
    SOUND_RATE,
    bars,
    decode,
    heard,
    joined,
    mismatches,
    read_bars,
    seen_and_heard,
    tones,
    write_scene,
)


def whole_scene(path, first=0, stop=10, *, slack=1):
    """The segments of a source that shows and plays all of a stretch of the scene."""
    segments = decode(path)
    assert mismatches(segments) == []
    seen, sounds = seen_and_heard(segments)
    seconds = [None if number is None else number // RATE for number in seen]
    expected = [int(first + (tick + 0.5) / 8) for tick in range(round(8 * (stop - first)))]
    assert abs(len(seconds) - len(expected)) <= slack
    for found in (seconds, sounds):
        wrong = [
            tick
            for tick, pair in enumerate(zip(found, expected, strict=False))
            if pair[0] != pair[1]
        ]
        # A tone that changes within a tick can be heard as either.
        assert all(tick % 8 in (0, 7) for tick in wrong), wrong
        assert len(wrong) <= 2 * (stop - first)
    return segments


FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+delay_moov"}


def test_a_fragmented_mp4_whose_edit_list_begins_empty(tmp_path):
    late_picture = write_scene(tmp_path / "picture.mp4", 0, 10, picture=(1, 10), options=FRAGMENTS)
    segments = decode(late_picture, min_segment_seconds=0.9)
    assert mismatches(segments) == []
    seen, sounds = seen_and_heard(segments)
    assert seen[:8] == [None] * 8
    assert seen[8] == pytest.approx(26, abs=1)
    assert sounds[4] == 0
    late_sound = write_scene(tmp_path / "sound.mp4", 0, 10, sound=(2, 10), options=FRAGMENTS)
    segments = decode(late_sound)
    assert mismatches(segments) == []
    seen, sounds = seen_and_heard(segments)
    assert sounds[:15] == [None] * 15
    assert sounds[20] == 2
    assert seen[20] == pytest.approx(64, abs=1)


def as_block_groups(data):
    """Turns the simple blocks of Matroska into groups without a duration, which they can be."""
    out, at = bytearray(), 0
    while at < len(data):
        name, name_bytes = element_number(data, at, with_marker=True)
        size, size_bytes = element_number(data, at + name_bytes)
        begin = at + name_bytes + size_bytes
        is_open = size == (1 << 7 * size_bytes) - 1
        body = data[begin:] if is_open else data[begin : begin + size]
        if name in (0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE):  # segment, cluster, tracks, track
            out += element(data[at : at + name_bytes], as_block_groups(body))
        elif name == 0xA3:
            _, track_bytes = element_number(body, 0)
            block = bytearray(body)
            is_key = block[track_bytes + 2] & 0x80
            block[track_bytes + 2] &= 0x7F
            reference = b"" if is_key else element(b"\xfb", b"\xff")
            out += element(b"\xa0", element(b"\xa1", bytes(block)) + reference)
        elif name not in (0x23E383, 0x114D9B74, 0x1C53BB6B):  # usual duration, positions
            out += data[at : begin + len(body)]
        at = begin + len(body)
    return bytes(out)


def element_number(data, at, *, with_marker=False):
    num_bytes = 1
    while not data[at] & (0x80 >> (num_bytes - 1)):
        num_bytes += 1
    value = int.from_bytes(data[at : at + num_bytes], "big")
    return (value if with_marker else value & ((1 << 7 * num_bytes) - 1)), num_bytes


def element(name, body):
    return name + struct.pack(">Q", len(body) | 1 << 56) + body


def test_matroska_in_block_groups_without_durations(tmp_path):
    made = write_scene(tmp_path / "made.mkv", 0, 10, bframes=2)
    path = tmp_path / "groups.mkv"
    path.write_bytes(as_block_groups(made.read_bytes()))
    segments = whole_scene(path)
    assert sum(segment.repairs.sound_gaps for segment in segments) == 0


@pytest.mark.parametrize(("video", "audio"), [("libvpx", "libopus"), ("libvpx-vp9", "libopus")])
def test_pictures_that_are_decoded_and_never_shown(tmp_path, video, audio):
    alternate = {"auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "7", "b": "300k"}
    alternate |= {"deadline": "realtime", "cpu-used": "8"} if "vp9" in video else {}
    path = tmp_path / "alternate.webm"
    whole_scene(write_scene(path, 0, 10, codecs=(video, audio), codec_options=alternate))


def test_a_system_clock_reference_that_is_noise(tmp_path):
    path = write_scene(tmp_path / "a.mpg", 0, 10, codecs=("mpeg2video", "mp2"), bframes=2)
    data, rng, at = bytearray(path.read_bytes()), random.Random(1), 0
    while (at := data.find(b"\0\0\1\xba", at)) >= 0:
        noise = [rng.randrange(256) for _ in range(6)]
        fixed = [(0xC4, 0x44), (0, 0), (4, 4), (0, 0), (4, 4), (1, 1)]  # marker bits
        data[at + 4 : at + 10] = bytes(
            value & ~mask | bits for value, (mask, bits) in zip(noise, fixed, strict=True)
        )
        at += 4
    path.write_bytes(data)
    whole_scene(path)


@pytest.mark.parametrize("codecs", [("libx264", "aac"), ("mpeg2video", "mp2")])
@pytest.mark.parametrize("begin", [95_437.0, 95_431.5])
def test_a_transport_clock_that_runs_over_its_33_bits(tmp_path, codecs, begin):
    path = tmp_path / "wrap.ts"
    segments = whole_scene(write_scene(path, 0, 14, codecs=codecs, bframes=2, offset=begin), 0, 14)
    assert sum(segment.repairs.clock_leaps for segment in segments) == 0


@pytest.mark.parametrize(("suffix", "codecs"), [(".mpg", ("mpeg2video", "mp2")), (".ts", ("", ""))])
def test_fields_are_frames(tmp_path, suffix, codecs):
    codecs = codecs if codecs[0] else ("libx264", "aac")
    interlaced = {"flags": "+ilme+ildct", "x264-params": "tff=1"}
    path = tmp_path / f"fields{suffix}"
    whole_scene(write_scene(path, 0, 10, codecs=codecs, codec_options=interlaced))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_pictures_at_1_to_240_a_second(tmp_path, suffix):
    rng, times = random.Random(3), [0]
    while times[-1] < 240 * 9:
        times.append(times[-1] + rng.choice([1, 1, 1, 8, 48, 240]))
    path = tmp_path / f"uneven{suffix}"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=240)
        (video.width, video.height), video.pix_fmt = SIZE, "yuv420p"
        video.options = {"bf": "2", "crf": "14"}
        video.codec_context.time_base = Fraction(1, 240)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(bars(number), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 240)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    seen, _ = seen_and_heard(decode(path))
    middles = [240 * (tick + 0.5) / 8 for tick in range(len(seen))]
    assert len(seen) >= 8 * 9
    # Half a millisecond of Matroska's rounding may decide which one is on.
    assert all(
        seen[tick] in {sum(time <= at + beside for time in times) - 1 for beside in (-0.2, 0.2)}
        for tick, at in enumerate(middles)
    )


@pytest.mark.parametrize("layout", ["5.1", "7.1"])
def test_sound_in_the_low_frequency_channel_alone(tmp_path, layout):
    channels = av.AudioLayout(layout).channels
    samples = np.zeros((len(channels), SOUND_RATE * 4), np.int16)
    samples[[channel.name for channel in channels].index("LFE")] = tones(0, 4)
    path = tmp_path / "low.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=SOUND_RATE, layout=layout)
        packed = np.ascontiguousarray(samples.T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        frame.sample_rate = SOUND_RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (segment,) = decode(path)
    assert heard(segment.waveform)[4::8] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"),
    [(".wav", "pcm_u8", 8_000), (".mp4", "aac", 8_000), (".mkv", "libopus", 8_000),
     (".avi", "pcm_s16le", 11_025), (".mkv", "flac", 96_000)],
)  # fmt: skip
def test_sound_of_any_rate(tmp_path, suffix, codec, rate):
    codecs = ("" if suffix == ".wav" else "libx264", codec)
    path = write_scene(tmp_path / f"rate{suffix}", 0, 10, codecs=codecs, sound_rate=rate)
    _, sounds = seen_and_heard(decode(path))
    assert sounds[4::8] == list(range(10))


def parts(folder, suffix, *changes, codecs=("libx264", "aac")):
    """Two halves of the scene on one clock, the second one changed."""
    halves = [
        write_scene(
            folder / f"{number}{suffix}", 5 * number, 5 * number + 5, codecs=codecs,
            offset=5.0 * number, **change,
        )
        for number, change in enumerate(changes)
    ]  # fmt: skip
    return joined(folder / f"whole{suffix}", *halves)


def test_a_sample_rate_that_changes_in_the_middle(tmp_path):
    whole_scene(parts(tmp_path, ".ts", {"sound_rate": 48_000}, {"sound_rate": 32_000}))
    sound = ("", "libmp3lame")
    path = parts(tmp_path, ".mp3", {"sound_rate": 44_100}, {"sound_rate": 22_050}, codecs=sound)
    _, sounds = seen_and_heard(decode(path))
    assert sounds[4:40:8] == [0, 1, 2, 3, 4]
    assert sounds[45:80:8] == [5, 6, 7, 8, 9]  # behind what the encoders pad


def test_a_pixel_format_that_changes_in_the_middle(tmp_path):
    whole_scene(parts(tmp_path, ".ts", {"pix_fmt": "yuv420p"}, {"pix_fmt": "yuv444p"}))


def with_orientation(access_unit, degrees):
    """Puts a display orientation message (H.264, D.1.27) before the first slice of a picture."""
    bits = f"000{degrees * 65536 // 360:016b}010" + "0" + "1"  # repeated until the next sequence
    message = bytes([0x06, 47, 3]) + int(bits, 2).to_bytes(3, "big") + b"\x80"
    slice_at = access_unit.index(b"\0\0\1\x65")
    return access_unit[:slice_at] + b"\0\0\1" + message + access_unit[slice_at:]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_an_orientation_that_the_codec_announces_in_the_middle(tmp_path, degrees):
    """By a message at key frames, which holds until the next one."""
    upright = write_scene(tmp_path / "upright.ts", 0, 5, codecs=("libx264", ""))
    turned = tmp_path / "turned.ts"
    with av.open(str(turned), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        size = SIZE if degrees % 180 == 0 else SIZE[::-1]
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        stream.options = {"crf": "14", "g": "25", "bf": "2"}
        stream.codec_context.time_base = Fraction(1, RATE)
        packets = []
        for number in range(125, 250):
            # Turned to the right, so that turning it to the left shows it upright.
            picture = np.ascontiguousarray(np.rot90(bars(number), -(degrees // 90)))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet in packets:
            data = with_orientation(bytes(packet), degrees) if packet.is_keyframe else bytes(packet)
            announced = av.Packet(data)
            announced.stream, announced.time_base = stream, packet.time_base
            announced.pts, announced.dts = packet.pts, packet.dts
            announced.is_keyframe = packet.is_keyframe
            container.mux(announced)
    segments = decode(joined(tmp_path / "all.ts", upright, turned))
    seen, _ = seen_and_heard(segments)
    shapes = {segment.frames.shape[1:3] for segment in segments}
    assert shapes == {SIZE[::-1]}
    middles = [int(25 * (tick + 0.5) / 8) for tick in range(len(seen))]
    assert len(seen) >= 78
    assert seen == pytest.approx(middles, abs=1)


@pytest.mark.parametrize("pix_fmt", ["gbrp16le", "yuv420p16le", "gray16le"])
def test_sixteen_bits_a_sample(tmp_path, pix_fmt):
    whole_scene(
        write_scene(
            tmp_path / "deep.mkv", 0, 10, codecs=("ffv1", "flac"), pix_fmt=pix_fmt,
            codec_options={"color_trc": "smpte2084", "color_primaries": "bt2020"},
        )
    )  # fmt: skip


def write_gray(path, codec, pix_fmt, size, values):
    """Writes plain gray pictures, one for each value, eight a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        (stream.width, stream.height), stream.pix_fmt = size, pix_fmt
        for number, value in enumerate(values):
            picture = np.full((size[1], size[0], 3), value, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("size", "stored"), [((1, 1), (1, 1)), ((6, 200), (200, 6)), ((9, 2), (2, 9))]
)
def test_pictures_of_a_pixel_and_a_line(tmp_path, size, stored):
    values = [(37 * number) % 256 for number in range(16)]
    path = write_gray(tmp_path / "tiny.mkv", "ffv1", "bgr0", size, values)
    (segment,) = decode(path)
    assert segment.frames.shape == (16, *stored, 3)
    assert np.abs(segment.frames.mean(axis=(1, 2, 3)) - values).max() <= 1


def test_pictures_of_33_million_pixels(tmp_path):
    values = [20 * number for number in range(10)]
    path = write_gray(tmp_path / "large.avi", "mjpeg", "yuvj420p", (7680, 4320), values)
    (segment,) = decode(path)
    assert segment.frames.shape == (10, 48, 85, 3)
    assert np.abs(segment.frames.mean(axis=(1, 2, 3)) - values).max() <= 2


@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".mkv"])
def test_a_picture_that_ends_early_is_held_and_counted(tmp_path, suffix):
    segments = decode(write_scene(tmp_path / f"sound{suffix}", 0, 18, picture=(0, 4)))
    assert [segment.repairs.held_picture for segment in segments] == [1, 1, 1, 1]
    assert [read_bars(segment.frames[-1]) for segment in segments] == [99] * 4
    longer = decode(write_scene(tmp_path / f"picture{suffix}", 0, 18, sound=(0, 4)))
    assert [segment.repairs.held_picture for segment in longer] == [0, 0, 0, 0]
    assert [segment.waveform is not None for segment in longer] == [True, False, False, False]
    even = decode(write_scene(tmp_path / f"even{suffix}", 0, 18))
    assert [segment.repairs.held_picture for segment in even] == [0, 0, 0, 0]

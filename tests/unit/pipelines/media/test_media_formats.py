"""One clock in every format: which frame is stored for a tick, and when sound is heard.

Each frame of these files carries its number, so that a wrong frame is seen as one.
"""

from bisect import bisect_right
from fractions import Fraction

import av
import numpy as np
import pytest

from pipelines.media.decode import decode_segments
from tests.helpers.media import (
    DECODE,
    frame_number,
    numbered_frame,
    timed_frame,
    tone,
    write_media,
    write_numbered,
    write_timed,
)
from tests.helpers.timed_scenes import RATE, seen_and_heard, write_scene
from tests.helpers.timed_scenes import decode as scene

TIMES = [0.48, 1.44, 2.6, 3.32]
"""The first is not close to where a tick ends: AVI moves the picture by up to a frame there."""
SECONDS = 4.0
FORMATS = {
    "mp4 h264 aac": (".mp4", ("libx264", "aac"), {}),
    "mp4 h264 with B-frames, aac": (
        ".mp4",
        ("libx264", "aac"),
        {"video_options": {"preset": "medium", "bf": "3", "crf": "10"}},
    ),
    "webm vp9 opus": (".webm", ("libvpx-vp9", "libopus"), {}),
    "mkv hevc flac": (".mkv", ("libx265", "flac"), {}),
    "avi mpeg4 mp3": (".avi", ("mpeg4", "libmp3lame"), {}),
    "mov prores pcm": (".mov", ("prores", "pcm_s16le"), {"pixel_format": "yuv422p10le"}),
    "mpegts h264 aac": (".ts", ("libx264", "aac"), {}),
    "mpegts mpeg2 mp2": (".ts", ("mpeg2video", "mp2"), {"video_options": {"q": "2"}}),
    "mp4 av1 opus": (
        ".mp4",
        ("libsvtav1", "libopus"),
        {"video_options": {"preset": "8", "crf": "10"}},  # faster ones blend frames
    ),
}
RATES = [Fraction(24), Fraction(25), Fraction(30_000, 1001), Fraction(50), Fraction(60)]
HALF_FRAME = 0.062


def decode(path, **changes):
    settings = DECODE | {"segment_seconds": 10.0, "min_segment_seconds": 0.5}
    (segment,) = decode_segments(str(path), formats="all", **(settings | changes))
    return segment


def shown(rate, num_ticks):
    """The frame that is shown in the middle of each tick."""
    return [int(Fraction(2 * tick + 1, 16) * rate) % 256 for tick in range(num_ticks)]


def numbers(segment):
    return [frame_number(frame[:, :64]) for frame in segment.frames]


def flashes(segment):
    is_bright = segment.frames[:, :, 72:88].mean(axis=(1, 2, 3)) > 128
    return np.flatnonzero(np.diff(is_bright.astype(int), prepend=0) == 1) / 8


def beeps(segment):
    """When it becomes loud after a tenth of a second of silence, to a thousandth."""
    loud = np.abs(segment.waveform.astype(int)).reshape(-1, 16).max(axis=1) > 4000
    at = np.flatnonzero(loud)
    return at[np.diff(at, prepend=-1000) > 100] / 1000


def timestamps(path):
    """When each frame is shown, as the packets of the container say it."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        return sorted(packet.pts * stream.time_base for packet in packets)


def check(path, rate):
    segment = decode(path)
    assert beeps(segment) == pytest.approx(flashes(segment), abs=HALF_FRAME)
    # MP3 in AVI begins a fiftieth of a second early, and the muxer moves the picture to it.
    assert beeps(segment) == pytest.approx(TIMES, abs=0.04)
    there, times = numbers(segment), timestamps(path)
    middles = [Fraction(2 * tick + 1, 16) + times[0] for tick in range(len(there))]
    assert there == [bisect_right(times, middle) - 1 for middle in middles]
    if path.suffix != ".avi":
        assert there == shown(rate, len(there))
    assert len(there) >= 31


@pytest.mark.parametrize(("kind", "rate"), zip(FORMATS, RATES * 2, strict=False))
def test_a_flash_is_seen_when_its_beep_is_heard(tmp_path, kind, rate):
    suffix, codecs, how = FORMATS[kind]
    check(write_timed(tmp_path / f"clip{suffix}", TIMES, SECONDS, rate, codecs=codecs, **how), rate)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rate", RATES, ids=str)
def test_a_flash_is_seen_when_its_beep_is_heard_at_all_rates(tmp_path, kind, rate):
    suffix, codecs, how = FORMATS[kind]
    check(write_timed(tmp_path / f"clip{suffix}", TIMES, SECONDS, rate, codecs=codecs, **how), rate)


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".mp4"])
def test_sound_that_comes_before_the_picture_stays_before_it(tmp_path, suffix):
    path = write_timed(
        tmp_path / f"clip{suffix}", TIMES, SECONDS, Fraction(25), video_start=1.0, audio_start=0.5
    )
    segment = decode(path)
    # The picture was moved half a second more than the sound.
    assert flashes(segment) == pytest.approx([0.5 + time for time in TIMES], abs=HALF_FRAME)
    assert beeps(segment) == pytest.approx(TIMES, abs=0.04)
    assert segment.info.stream_offset_seconds == pytest.approx(-0.5, abs=0.03)
    late = numbers(segment)[4:]
    assert late == shown(25, len(late))


def remux(source, target, shift, **options):
    """Copies the packets, so many seconds later."""
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as written:
        streams = {s.index: written.add_stream_from_template(s) for s in read.streams}
        for packet in read.demux():
            if packet.dts is None:
                continue
            offset = round(shift / packet.time_base)
            packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
            packet.stream = streams[packet.stream_index]
            written.mux(packet)
    return target


def test_an_edit_list_that_hides_the_beginning_is_honoured(tmp_path):
    made = write_timed(tmp_path / "made.mp4", TIMES, SECONDS, Fraction(25))
    path = remux(made, tmp_path / "cut.mp4", -1.0, avoid_negative_ts="disabled")
    segment = decode(path)
    there = numbers(segment)
    assert there == [25 + number for number in shown(25, len(there))]
    assert beeps(segment) == pytest.approx([0.44, 1.6, 2.32], abs=HALF_FRAME / 2)


def test_sound_that_an_edit_list_hides_for_seconds_is_no_beginning(tmp_path):
    whole = write_scene(tmp_path / "whole.mp4", 0, 8, options={"movflags": "faststart"})
    path = remux(whole, tmp_path / "cut.mp4", -1.5, avoid_negative_ts="disabled")
    seen, heard = seen_and_heard(scene(path))
    assert [number // RATE for number in seen[4:]] == [2] * 8 + [3] * 8 + [4] * 8 + [5] * 8 + [
        6
    ] * 8 + [7] * 8
    assert heard[8::8] == [2, 3, 4, 5, 6, 7]


def test_an_edit_list_that_delays_is_honoured(tmp_path):
    made = write_timed(tmp_path / "made.mp4", TIMES, SECONDS, Fraction(25))
    segment = decode(remux(made, tmp_path / "late.mp4", 2.0))
    assert beeps(segment) == pytest.approx(flashes(segment), abs=HALF_FRAME)
    there = numbers(segment)[-32:]
    assert there == shown(25, len(there))


def test_negative_timestamps_are_only_another_beginning(tmp_path):
    made = tmp_path / "made.ts"
    write_timed(made, TIMES, SECONDS, Fraction(25), codecs=("libx264", "mp2"))
    path = remux(made, tmp_path / "early.ts", -2.5, avoid_negative_ts="disabled")
    segment = decode(path)
    assert beeps(segment) == pytest.approx(flashes(segment), abs=HALF_FRAME)
    there = numbers(segment)
    assert there[:30] == shown(25, 30)


def test_timestamps_that_step_back_never_give_a_frame_twice_or_out_of_order(tmp_path):
    rng = np.random.default_rng(0)
    made = write_numbered(tmp_path / "made.mkv", 100, codecs=("mjpeg", "pcm_s16le"))
    with av.open(str(made)) as read, av.open(str(tmp_path / "odd.mkv"), "w") as written:
        streams = {s.index: written.add_stream_from_template(s) for s in read.streams}
        for packet in read.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "video":
                packet.pts += int(rng.integers(-60, 60))
                packet.pts = max(packet.pts, packet.dts)
            packet.stream = streams[packet.stream_index]
            written.mux(packet)
    there = [frame_number(frame) for frame in decode(tmp_path / "odd.mkv").frames]
    assert there == sorted(there)
    assert np.abs(np.subtract(there, shown(25, len(there)))).max() <= 3


PICTURES = {
    "odd size": (".mkv", "libx264", "yuv444p", (63, 47), {}),
    "odd size, subsampled": (".avi", "mjpeg", "yuvj420p", (61, 45), {}),
    "interlaced": (
        ".ts",
        "libx264",
        "yuv420p",
        (64, 48),
        {"flags": "+ildct+ilme", "x264-params": "interlaced=1:tff=1", "crf": "8"},
    ),
    "10 bits": (".mkv", "libx265", "yuv420p10le", (64, 48), None),
    "4:2:2": (".mov", "prores", "yuv422p10le", (64, 48), {}),
    "alpha": (".mov", "qtrle", "argb", (64, 48), {}),
    "alpha, VP9": (".webm", "libvpx-vp9", "yuva420p", (64, 48), None),
    "gray": (".mkv", "ffv1", "gray", (64, 48), {}),
    "gray of 16 bits": (".mkv", "ffv1", "gray16le", (64, 48), {}),
    "PNG": (".avi", "png", "rgb24", (64, 48), {}),
    "planar RGB": (".mkv", "ffv1", "gbrp10le", (64, 48), {}),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_every_kind_of_picture_gives_its_frames(tmp_path, kind):
    suffix, codec, pixel_format, size, options = PICTURES[kind]
    path = tmp_path / f"clip{suffix}"
    frames = [numbered_frame(number, size) for number in range(50)]
    how = {} if options is None else {"video_options": options}
    write_media(path, frames, codecs=(codec, ""), pixel_format=pixel_format, **how)
    segment = decode(path)
    assert [frame_number(frame) for frame in segment.frames] == shown(25, 16)
    assert segment.frames.shape[1:3] == (size[1], size[0])


SOUNDS = [
    *[("pcm_s16le", layout, 48_000) for layout in ("mono", "stereo", "2.1", "quad", "5.0")],
    *[("pcm_s16le", layout, 48_000) for layout in ("5.1", "6.1", "7.1")],
    *[("pcm_s16le", "mono", rate) for rate in (8_000, 11_025, 22_050, 44_100, 96_000, 192_000)],
    ("pcm_u8", "stereo", 8_000),
    ("pcm_s24le", "5.1", 96_000),
    ("pcm_f32le", "7.1", 192_000),
    ("pcm_mulaw", "mono", 8_000),
    ("flac", "7.1", 48_000),
    ("aac", "5.1", 44_100),
    ("libopus", "5.1", 48_000),
    ("ac3", "5.1", 48_000),
]


@pytest.mark.parametrize(("codec", "layout", "rate"), SOUNDS)
def test_every_kind_of_sound_keeps_pitch_length_and_time(tmp_path, codec, layout, rate):
    waveform = tone(2.0, rate)
    waveform[: rate // 2] = 0
    path = write_media(
        tmp_path / ("clip.wav" if codec.startswith("pcm") else "clip.mkv"),
        waveform=waveform,
        sample_rate=rate,
        layout=layout,
        codecs=("", codec),
    )
    segment = decode(path)
    sound = segment.waveform.astype(float)
    assert len(sound) / 16_000 == pytest.approx(2.0, abs=0.13)
    loud = np.flatnonzero(np.abs(sound) > 3000)
    assert loud[0] / 16_000 == pytest.approx(0.5, abs=0.03)
    spectrum = np.abs(np.fft.rfft(sound[12_000:28_000]))
    assert spectrum.argmax() == pytest.approx(440, abs=1)
    assert segment.info.audio_codec == {"libopus": "opus"}.get(codec, codec)


def test_of_several_sound_tracks_the_default_one_is_taken(tmp_path):
    def write(path, default):
        with av.open(str(path), "w") as container:
            for number in range(3):
                stream = container.add_stream("pcm_s16le", rate=48_000, layout="mono")
                stream.disposition = av.stream.Disposition.default * (number == default)
            for number, stream in enumerate(container.streams):
                sound = tone(2.0, hertz=300.0 * (number + 1))
                frame = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
                frame.sample_rate, frame.pts = 48_000, 0
                container.mux(stream.encode(frame))
        return path

    for default in (0, 2):
        sound = decode(write(tmp_path / f"{default}.mkv", default)).waveform.astype(float)
        spectrum = np.abs(np.fft.rfft(sound[8_000:24_000]))
        assert spectrum.argmax() == pytest.approx(300 * (default + 1), abs=1)


@pytest.mark.parametrize(("video", "audio"), [(2.0, 4.0), (4.0, 2.0)])
def test_streams_of_different_length_end_when_each_does(tmp_path, video, audio):
    frames = [timed_frame(number, False) for number in range(round(25 * video))]
    path = write_media(tmp_path / "clip.mp4", frames, tone(audio))
    segment = decode(path, segment_seconds=4.0)
    assert segment.duration_seconds == pytest.approx(4.0, abs=0.13)
    there = numbers(segment)
    assert there[:15] == shown(25, 15)
    loud = np.flatnonzero(np.abs(segment.waveform.astype(int)) > 4000)
    assert loud[-1] / 16_000 == pytest.approx(audio, abs=0.06)

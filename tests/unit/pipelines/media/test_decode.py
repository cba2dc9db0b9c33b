import io
import tracemalloc

import av
import numpy as np
import pytest

from pipelines.media.container import DecodeError
from pipelines.media.decode import decode_segments
from pipelines.media.reasons import REASONS
from pipelines.media.streams.selection import probe
from tests.helpers.media import (
    CODECS,
    DECODE,
    frame_number,
    numbered_frame,
    tone,
    write_flash_and_beep,
    write_media,
    write_numbered,
)

HALF_FRAME = 0.0625


def decode(source, **changes):
    settings = DECODE | {"min_segment_seconds": 1.1, "short_side": 32}
    source = str(source) if not hasattr(source, "read") else source
    return list(decode_segments(source, formats="all", **(settings | changes)))


def reason(source, **changes):
    with pytest.raises(DecodeError) as caught:
        decode(source, **changes)
    assert caught.value.reason in REASONS
    return caught.value.reason


def numbers(segment):
    return [frame_number(frame) for frame in segment.frames]


def shown_numbers(num_ticks):
    """Frames of a source of 25 frames a second that are shown in the middle of each tick."""
    return [(2 * tick + 1) * 25 // 16 for tick in range(num_ticks)]


def test_a_stored_frame_is_the_one_shown_at_its_time(tmp_path):
    path = write_numbered(tmp_path / "clip.mp4", 75)
    (segment,) = decode(path)
    assert numbers(segment) == shown_numbers(24)


def test_frames_that_the_decoder_may_leave_out_change_nothing(tmp_path):
    options = {"preset": "medium", "bf": "3", "crf": "12"}
    for suffix in (".mp4", ".mkv", ".ts"):
        path = write_numbered(tmp_path / f"clip{suffix}", 77, video_options=options)
        with av.open(str(path)) as container:
            kinds = {frame.pict_type for frame in container.decode(video=0)}
        assert av.video.frame.PictureType.B in kinds
        (segment,) = decode(path)
        assert numbers(segment)[:24] == shown_numbers(24)


def test_slow_sources_repeat_frames(tmp_path):
    path = write_numbered(tmp_path / "clip.mkv", 6, frame_rate=2)
    (segment,) = decode(path)
    assert numbers(segment) == [tick // 4 for tick in range(24)]


def test_variable_frame_rate_follows_the_timestamps(tmp_path):
    times = [0.0, 0.1, 0.2, 1.0, 1.5, 1.6, 2.5, 2.9]
    frames = [numbered_frame(number) for number in range(len(times))]
    path = write_media(tmp_path / "clip.mkv", frames, tone(3.0), frame_times=times)
    (segment,) = decode(path)
    middles = (np.arange(23) + 0.5) / 8
    shown = [max(i for i, time in enumerate(times) if time <= middle) for middle in middles]
    assert numbers(segment)[:23] == shown


def test_segments_follow_each_other_without_gap_or_overlap(tmp_path):
    path = write_numbered(tmp_path / "clip.mp4", 175, waveform=tone(7.0))
    first, second = decode(path)
    assert (first.start_seconds, first.duration_seconds) == (0.0, 5.0)
    assert (second.start_seconds, second.duration_seconds) == (5.0, 2.0)
    assert numbers(first) + numbers(second) == shown_numbers(56)
    for segment in (first, second):
        assert len(segment.waveform) == segment.duration_seconds * 16_000


def test_a_rest_below_the_shortest_segment_is_dropped(tmp_path):
    path = write_numbered(tmp_path / "clip.mp4", 150)
    assert [segment.start_seconds for segment in decode(path, min_segment_seconds=1.5)] == [0.0]
    assert [segment.duration_seconds for segment in decode(path, min_segment_seconds=0.5)] == [5, 1]


def test_a_whole_source_may_be_shorter_than_a_rest(tmp_path):
    short = write_numbered(tmp_path / "short.mp4", 20)
    (segment,) = decode(short, min_source_seconds=0.75)
    assert segment.duration_seconds == 0.75
    assert (segment.frames.shape[0], len(segment.waveform)) == (6, 12_000)
    with pytest.raises(DecodeError, match=r"0\.8. s, min_source_seconds \(0\.9\)"):
        decode(short, min_source_seconds=0.9)
    longer = write_numbered(tmp_path / "longer.mp4", 145)
    assert [segment.start_seconds for segment in decode(longer, min_source_seconds=0.5)] == [0.0]


def test_the_tone_keeps_its_pitch_and_loudness(tmp_path):
    (segment,) = decode(write_numbered(tmp_path / "clip.mkv", 100, waveform=tone(4.0)))
    sound = segment.waveform[16_000:48_000].astype(float)
    spectrum = np.abs(np.fft.rfft(sound))
    assert spectrum.argmax() / 2.0 == pytest.approx(440, abs=1)
    assert np.abs(sound).max() == pytest.approx(16_000, rel=0.05)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv", ".avi", ".ts", ".mov"])
def test_picture_and_sound_are_less_than_half_a_frame_apart(tmp_path, suffix):
    times = [1.0, 2.04, 3.52, 6.2, 8.36]
    options = {"output_ts_offset": "7"} if suffix == ".ts" else {}
    path = write_flash_and_beep(tmp_path / f"clip{suffix}", times, 10.0, options=options)
    if suffix == ".ts":
        with av.open(str(path)) as container:
            assert container.start_time > 6_000_000  # microseconds
    segments = decode(path, min_segment_seconds=0.5)
    frames = np.concatenate([segment.frames for segment in segments])
    waveform = np.concatenate([segment.waveform for segment in segments]).astype(float)
    is_bright = frames.mean(axis=(1, 2, 3)) > 128
    flashes = np.flatnonzero(np.diff(is_bright.astype(int), prepend=0) == 1) / 8
    loudness = np.abs(waveform).reshape(-1, 80).max(axis=1) > 4000
    onsets = np.flatnonzero(loudness & ~np.roll(loudness, 1)) * 80 / 16_000
    beeps = [onsets[np.abs(onsets - time).argmin()] for time in flashes]
    assert flashes == pytest.approx(times, abs=HALF_FRAME)
    assert beeps == pytest.approx(flashes, abs=HALF_FRAME)


def test_sound_that_starts_late_stays_late(tmp_path):
    path = write_numbered(tmp_path / "clip.mkv", 100, waveform=tone(2.5), audio_start=1.5)
    (segment,) = decode(path)
    loud = np.flatnonzero(np.abs(segment.waveform) > 4000)
    assert loud[0] / 16_000 == pytest.approx(1.5, abs=0.03)
    assert segment.info.stream_offset_seconds == pytest.approx(1.5, abs=0.03)


def late_picture(path, seconds):
    """Five seconds of sound; the picture begins so much later."""
    num_frames = round(25 * (5.0 - seconds))
    frames = [numbered_frame(number) for number in range(num_frames)]
    times = [seconds + number / 25 for number in range(num_frames)]
    return write_media(path, frames, tone(5.0), frame_times=times)


def test_picture_that_starts_a_little_late_holds_its_first_frame(tmp_path):
    (segment,) = decode(late_picture(tmp_path / "clip.mkv", 0.5), segment_seconds=5.0)
    assert numbers(segment)[:5] == [1] * 5  # 0 is over before the middle of a tick
    assert numbers(segment)[-1] > 100
    assert segment.info.stream_offset_seconds == pytest.approx(-0.5, abs=0.03)


@pytest.mark.parametrize("late", [0.7, 1.0, 2.4])
def test_sound_before_a_late_picture_is_not_paired_with_it(tmp_path, late):
    path = late_picture(tmp_path / "clip.mkv", late)
    first, second, *_ = decode(path, segment_seconds=2.5, min_segment_seconds=0.5)
    assert first.frames is None
    assert np.abs(first.waveform).max() > 1000
    # The clip ends where the picture begins, unless the other part would be too short.
    end = 2.5 if late > 2 else late
    assert first.duration_seconds == second.start_seconds == pytest.approx(end, abs=0.13)
    assert numbers(second)[0] == pytest.approx(25 * (end - late) + 2, abs=2)


def test_sound_before_a_late_picture_that_is_too_short_for_a_clip_is_counted(tmp_path):
    first, *_ = decode(late_picture(tmp_path / "clip.mkv", 0.7), segment_seconds=2.5)
    assert first.start_seconds == pytest.approx(0.7, abs=0.13)
    assert first.decode_errors == 1
    assert numbers(first)[0] == pytest.approx(2, abs=2)


def test_rotated_video_comes_out_upright(tmp_path):
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, :32] = 255
    path = write_media(tmp_path / "clip.mp4", [frame] * 50, rotation=90)
    (segment,) = decode(path)
    assert segment.info.rotation == 90
    assert segment.frames.shape[1:3] == (43, 32)
    # Turned a quarter counterclockwise, the left half is below.
    assert segment.frames[0, 30:].mean() > 230
    assert segment.frames[0, :12].mean() < 25


def test_frames_are_never_enlarged_and_keep_their_aspect(tmp_path):
    path = write_numbered(tmp_path / "clip.mp4", 50)
    assert decode(path, short_side=128)[0].frames.shape[1:3] == (48, 64)
    assert decode(path, short_side=24)[0].frames.shape[1:3] == (24, 32)


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        ("clip.mp4", "libx264", "yuv420p"),
        ("clip.mp4", "libvpx-vp9", "yuv420p"),  # only the container says it
        ("clip.mov", "prores_ks", "yuv422p10le"),
    ],
)
def test_pixels_become_square(tmp_path, name, codec, pixel_format):
    codecs = (codec, "aac")
    path = write_numbered(
        tmp_path / name, 50, pixel_aspect=2, codecs=codecs, pixel_format=pixel_format
    )
    assert decode(path, short_side=24)[0].frames.shape[1:3] == (24, 64)


def test_very_long_pictures_are_bounded(tmp_path):
    frame = np.zeros((16, 1600, 3), np.uint8)
    path = write_media(tmp_path / "clip.mp4", [frame] * 50)
    assert decode(path, short_side=32)[0].frames.shape[1:3] == (3, 256)


def test_sound_alone_and_picture_alone_are_accepted(tmp_path):
    (sound,) = decode(write_media(tmp_path / "a.mkv", waveform=tone(2.0)))
    (picture,) = decode(write_numbered(tmp_path / "b.mkv", 50, waveform=None))
    assert sound.frames is None
    assert len(sound.waveform) == 32_000
    assert picture.waveform is None
    assert len(picture.frames) == 16
    assert (sound.info.video_codec, picture.info.audio_codec) == (None, None)


def test_a_cover_picture_is_no_video(tmp_path):
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("libmp3lame", rate=48_000, layout="mono")
        cover = container.add_stream("png")
        cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        image = av.VideoFrame.from_ndarray(numbered_frame(3), format="rgb24")
        container.mux(cover.encode(image))
        frame = av.AudioFrame.from_ndarray(tone(2.0)[None], format="s16", layout="mono")
        frame.sample_rate = 48_000
        resampler = av.AudioResampler(audio.format.name, "mono", 48_000, audio.frame_size)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            piece.pts = None
            container.mux(audio.encode(piece))
        container.mux(audio.encode(None))
    (segment,) = decode(path)
    assert segment.frames is None
    assert segment.info.video_codec is None


def test_a_stretch_without_sound_is_silent_picture(tmp_path):
    path = write_numbered(tmp_path / "clip.mp4", 250, waveform=tone(5.0))
    first, second = decode(path)
    assert first.waveform is not None
    assert second.waveform is None
    assert second.frames is not None


def test_surround_sound_becomes_mono(tmp_path):
    path = tmp_path / "surround.wav"
    channels = np.stack([tone(2.0, hertz=300.0 + 10 * i) // 8 for i in range(8)], axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=48_000, layout="7.1")
        flat = np.ascontiguousarray(channels).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(flat, format="s16", layout="7.1")
        frame.sample_rate, frame.pts = 48_000, 0
        container.mux(stream.encode(frame))
    (segment,) = decode(path)
    assert np.abs(segment.waveform).max() > 500


def test_a_truncated_file_gives_what_decodes(tmp_path):
    path = write_numbered(tmp_path / "clip.ts", 250)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    segments = decode(path)
    seconds = sum(segment.duration_seconds for segment in segments)
    assert 4 < seconds < 8
    assert numbers(segments[0])[:24] == shown_numbers(24)


def test_damage_is_counted_and_skipped(tmp_path):
    path = write_numbered(tmp_path / "clip.ts", 250)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for at in rng.integers(len(data) // 3, len(data), 400):
        data[at] ^= 0xFF
    path.write_bytes(data)
    segments = decode(path)
    assert segments
    assert sum(segment.decode_errors for segment in segments) > 0


def test_each_failure_has_its_reason(tmp_path):
    (tmp_path / "text.mp4").write_text("no media at all\n" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert reason(tmp_path / "text.mp4") == "not_media"
    assert reason(tmp_path / "empty.mp4") == "not_media"
    assert reason(tmp_path / "missing.mp4") == "unreadable"
    assert reason(tmp_path) == "unreadable"
    assert reason(write_numbered(tmp_path / "short.mp4", 10)) == "too_short"
    path = write_numbered(tmp_path / "clip.mp4", 250)
    assert reason(path, max_pixels=1000) == "too_many_pixels"
    assert reason(path, max_seconds=6.0) == "too_long"


def test_a_name_is_never_taken_for_a_protocol_or_a_pattern(tmp_path):
    folder = tmp_path / "http:"
    folder.mkdir()
    for name in ("concat:a|b.mp4", "%03d.mp4", "a b\n#?&.mp4", "\u00e9\u4e2d.mp4", "-i.mp4"):
        path = write_numbered(folder / "made.mp4", 50).rename(folder / name)
        assert len(decode(path)) == 1


def test_a_name_that_is_no_text_is_opened(tmp_path):
    path = write_numbered(tmp_path / "made.mp4", 50)
    odd = path.rename(tmp_path / b"\xff\xfe.mp4".decode(errors="surrogateescape"))
    assert len(decode(odd)) == 1


def test_a_playlist_does_not_reach_the_network(tmp_path):
    path = tmp_path / "list.mp4"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/a.ts\n")
    assert reason(path) in {"not_media", "no_streams", "undecodable"}


def test_bytes_decode_as_the_file_does(tmp_path):
    path = write_numbered(tmp_path / "clip.mp4", 50)
    (from_file,), (from_bytes,) = decode(path), decode(io.BytesIO(path.read_bytes()))
    assert np.array_equal(from_file.frames, from_bytes.frames)
    assert np.array_equal(from_file.waveform, from_bytes.waveform)
    assert from_file.info == from_bytes.info


def test_probe_says_what_decoding_finds(tmp_path):
    path = write_numbered(tmp_path / "clip.mp4", 50)
    info = probe(str(path), "all")
    assert (info.video_codec, info.audio_codec) == ("h264", "aac")
    assert (info.native_width, info.native_height, info.native_rate) == (64, 48, 25.0)
    assert info.duration_seconds == pytest.approx(2.0, abs=0.1)
    assert CODECS[".mp4"][0] == "libx264"


def test_memory_does_not_grow_with_the_length(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.media.packets.MAX_HELD_BYTES", 0)

    def peak(seconds):
        frames = [np.zeros((32, 32, 3), np.uint8)] * (seconds * 5)
        sound = np.zeros(seconds * 16_000, np.int16)
        path = write_media(
            tmp_path / f"{seconds}.avi", frames, sound, frame_rate=5, sample_rate=16_000
        )
        settings = {"segment_seconds": 5.0, "min_segment_seconds": 1.0, "frame_rate": 8.0}
        tracemalloc.start()
        segments = decode_segments(str(path), **settings, short_side=32, sample_rate=16_000)
        count = sum(1 for _ in segments)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == seconds / 5
        return most

    num_packets = 540 * (5 + 16_000 / 1024)
    assert peak(600) < 1.2 * peak(60) + 150 * num_packets


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_packets_read_again_decode_as_held_ones(tmp_path, monkeypatch, suffix):
    path = write_numbered(tmp_path / f"clip{suffix}", 175, waveform=tone(7.0))
    held = decode(path)
    monkeypatch.setattr("pipelines.media.packets.MAX_HELD_BYTES", 0)
    for source in (path, io.BytesIO(path.read_bytes())):
        again = decode(source)
        assert len(again) == len(held) == 2
        for one, other in zip(held, again, strict=True):
            assert np.array_equal(one.frames, other.frames)
            assert np.array_equal(one.waveform, other.waveform)

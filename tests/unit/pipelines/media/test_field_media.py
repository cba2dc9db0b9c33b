"""Inputs that people meet in the field, read back by their bars and tones."""

import json

import av
import numpy as np
import pytest

from tests.helpers.timed_scenes import decode, mismatches, read_bars, seen_and_heard

TICKS = 8


@pytest.fixture
def field(data_dir):
    folder = data_dir / "field"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


def frames_of(*stretches):
    """The frames that are on in the middle of each tick of stretches of frames, 25 a second."""
    return [
        first + int((tick + 0.5) * 25 / TICKS)
        for first, stop in stretches
        for tick in range(round((stop - first) * TICKS / 25))
    ]


@pytest.mark.parametrize(
    ("name", "stretches", "num_leaps"),
    [
        ("joined_short_then_long.ts", [(0, 50), (500, 675)], 1),
        ("joined_same_length.ts", [(0, 125), (500, 625)], 1),
        ("two_stretches_edit_list.mp4", [(0, 50), (100, 175)], 0),
    ],
)
def test_joined_stretches_keep_picture_and_sound_together(field, name, stretches, num_leaps):
    segments = decode(field / name)
    seen, sounds = seen_and_heard(segments)
    expected = frames_of(*stretches)
    assert seen == expected
    assert [second for second in sounds if second is not None] == [f // 25 for f in expected]
    assert mismatches(segments) == []
    assert sum(segment.repairs.clock_leaps for segment in segments) == num_leaps


def test_a_transport_stream_whose_clock_restarts_is_both_halves(field, tmp_path):
    path = field / "ts_clock_restarts_at_8.5s.ts"
    segments = decode(path)
    seconds = sum(segment.duration_seconds for segment in segments)
    assert seconds == pytest.approx(17.0, abs=0.2)
    assert sum(segment.repairs.clock_leaps for segment in segments) == 1
    assert [segment.repairs.rebased_clocks for segment in segments] == [0, 2, 2, 2]
    frames = blocks(segments)
    sound = np.concatenate([segment.waveform for segment in segments]).astype(float)
    (tmp_path / "second.ts").write_bytes(path.read_bytes()[second_half(path) :])
    alone = decode(tmp_path / "second.ts")
    there = blocks(alone)[8:56]
    apart = [np.abs(frames[at : at + 48] - there).mean() for at in range(len(frames) - 48)]
    piece = np.concatenate([segment.waveform for segment in alone])[16_000:48_000].astype(float)
    heard_at = np.correlate(sound, piece, "valid").argmax() / 16_000
    assert heard_at == pytest.approx(9.5, abs=0.13)
    assert np.argmin(apart) / TICKS == pytest.approx(heard_at, abs=0.125)


def blocks(segments):
    """Frames as 4 x 4 colors, since the halves differ in size."""
    colors = []
    for segment in segments:
        count, height, width = segment.frames.shape[:3]
        cells = segment.frames.reshape(count, 4, height // 4, 4, width // 4, 3)
        colors.append(cells.astype(float).mean(axis=(2, 4)))
    return np.concatenate(colors)


def second_half(path):
    """Where the timestamps begin again, in bytes."""
    with av.open(str(path)) as container:
        before, header = 0, None
        for packet in container.demux(video=0):
            header = packet.pos if header is None else header
            if packet.dts < before:
                return packet.pos - header
            before = packet.dts
    raise AssertionError(f"the clock of {path} never restarts")


def test_a_chain_of_ogg_streams_is_all_there(field, tmp_path):
    segments = decode(field / "chained_two_streams.ogg")
    assert sum(segment.duration_seconds for segment in segments) == pytest.approx(12.0, abs=0.13)
    assert all(segment.waveform is not None for segment in segments)
    assert sum(segment.repairs.clock_leaps for segment in segments) == 1
    # The first stream is 6 s long, and the second one begins where it ends.
    sound = np.concatenate([segment.waveform for segment in segments]).astype(float)
    data = (field / "chained_two_streams.ogg").read_bytes()
    begins = [at for at in range(len(data)) if data[at : at + 7] == b"\x01vorbis"]
    assert len(begins) == 2
    (tmp_path / "second.ogg").write_bytes(data[data.rfind(b"OggS", 0, begins[1]) :])
    alone = np.concatenate([s.waveform for s in decode(tmp_path / "second.ogg")]).astype(float)
    found = np.correlate(sound, alone[16_000:48_000], "valid").argmax() / 16_000
    assert found == pytest.approx(1.0 + 6.014, abs=0.02)


@pytest.mark.parametrize("name", ["slides.mkv", "slides.mp4"])
def test_a_slide_is_on_until_the_next_one(field, name):
    segments = decode(field / name)
    seen, sounds = seen_and_heard(segments)
    assert seen == [1] * 14 * TICKS + [2] * 14 * TICKS + [3] * 12 * TICKS
    assert None not in sounds


def test_a_still_screen_is_seen_in_every_clip(field):
    segments = decode(field / "screen_recording_25s_still.mp4")
    assert [segment.start_seconds for segment in segments] == [0, 5, 10, 15, 20, 25]
    assert all(segment.frames is not None and len(segment.frames) == 40 for segment in segments)
    assert not np.array_equal(segments[-1].frames[0], segments[-1].frames[-1])


def test_frames_at_uneven_times_are_those_that_are_on(field):
    times = json.loads((field / "uneven_b_frames.times.json").read_text())
    segments = decode(field / "uneven_b_frames.mkv")
    seen = [read_bars(frame) for segment in segments for frame in segment.frames]
    middles = (np.arange(len(seen)) + 0.5) / TICKS
    on = np.searchsorted(np.array(times), middles + 1e-6, side="right")
    assert seen[:96] == on[:96].tolist()


def test_timestamps_that_wobble_leave_no_hole(field):
    segments = decode(field / "wobble_21ms.mkv")
    sound = np.concatenate([segment.waveform for segment in segments]).astype(float)
    assert len(sound) / 16_000 == pytest.approx(10.0, abs=0.13)
    assert outside_decibels(sound[1600:-4800], 997.0) < -45
    loud = np.abs(sound[1600:-4800]).reshape(-1, 16)[: len(sound) // 16]
    assert loud.max(axis=1).min() > 0.5 * np.abs(sound).max()
    assert sum(segment.repairs.bridged_gaps for segment in segments) > 10
    assert sum(segment.repairs.sound_gaps for segment in segments) == 0


def outside_decibels(sound, hertz):
    """Power outside a tone, compared with that of the tone."""
    sound = sound[: len(sound) // 2 * 2] * np.hanning(len(sound) // 2 * 2)
    power = np.abs(np.fft.rfft(sound)) ** 2
    frequencies = np.fft.rfftfreq(len(sound), 1 / 16_000)
    is_tone = np.abs(frequencies - hertz) < 5
    return 10 * np.log10(power[~is_tone].sum() / power[is_tone].sum())

"""Copies that another codec, size, loudness and beginning have been through, and what is none."""

import tracemalloc

import numpy as np
import pytest

from pipelines.dataset import near_duplicates
from pipelines.dataset.alike import REPEATING, SCENE, find_alike
from pipelines.dataset.codes import Codes, frame_codes, sound_codes
from pipelines.dataset.near_duplicates import FRAME_RULE, SOUND_RULE, find_pairs
from pipelines.media.decode import decode_segments
from tests.helpers.media import write_media
from tests.helpers.scenes import RATE, SAMPLE_RATE, scene, sound

NOTHING = Codes(np.empty(0, np.uint64), np.empty(0, np.bool_))


def recoded(path, frames, waveform):
    """What is left after a lossy file."""
    path = write_media(path, list(frames), waveform, frame_rate=8, sample_rate=SAMPLE_RATE)
    (segment,) = decode_segments(
        str(path),
        segment_seconds=10.0,
        min_segment_seconds=0.5,
        frame_rate=RATE,
        short_side=128,
        sample_rate=SAMPLE_RATE,
        max_pixels=10**7,
        max_seconds=100.0,
    )
    return segment.frames, segment.waveform


def codes(clips):
    """Codes of clips given as frames and waveform, either of which may be None."""
    frames = [NOTHING if f is None else frame_codes(f, RATE) for f, _ in clips]
    sounds = [NOTHING if w is None else sound_codes(w, SAMPLE_RATE) for _, w in clips]
    return frames, sounds


def alike(clips, sources=None):
    """Pairs with their kind."""
    found = find_alike(*codes(clips), sources or range(len(clips)))
    return {(pair.first, pair.second): pair.kind for pair in found}


def test_a_copy_that_was_recoded_cut_dimmed_and_made_small_is_found(tmp_path):
    frames, waveform = scene(0), sound(0)
    dimmed = (frames[9:, ::2, ::2] * 0.7 + 30).astype(np.uint8)
    copy = recoded(tmp_path / "a.webm", dimmed, (waveform[18_000:] * 0.3).astype(np.int16))
    others = [(scene(seed), sound(seed)) for seed in range(1, 12)]
    clips = [*others[:5], (frames, waveform), *others[5:], copy]
    assert alike(clips) == {(5, 12): "picture and sound"}
    (pair,) = find_pairs(codes(clips)[1], range(13), SOUND_RULE)
    assert pair.offset_seconds == pytest.approx(1.125, abs=0.05)
    (pair,) = find_pairs(codes(clips)[0], range(13), FRAME_RULE)
    assert pair.offset_seconds == pytest.approx(1.125, abs=0.13)


def test_one_side_is_enough(tmp_path):
    frames, waveform = scene(0), sound(0)
    assert alike([(frames, waveform), (frames, sound(1))]) == {(0, 1): "picture"}
    assert alike([(frames, waveform), (scene(1), waveform)]) == {(0, 1): "sound"}
    assert alike([(frames, None), (frames, waveform)]) == {(0, 1): "picture"}
    assert alike([(None, waveform), (frames, waveform)]) == {(0, 1): "sound"}


def test_clips_of_one_source_are_not_compared():
    clips = [(scene(0), sound(0))] * 3
    assert set(alike(clips, [7, 7, 8])) == {(0, 2), (1, 2)}


def test_one_camera_on_the_same_place_gives_a_scene_and_no_copy():
    clips = [(scene(seed, spread=0.0004, shot=5), sound(seed)) for seed in (0, 1)]
    assert alike(clips) == {(0, 1): SCENE}


def glide(seed, seconds=4.0):
    """A tone with overtones that falls over the same notes again and again."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 200.0 * 2.0 ** (-0.6 * ((time / 0.7 + rng.uniform()) % 1.0))
    cycles = np.cumsum(pitch) / SAMPLE_RATE
    tone = sum(np.sin(2 * np.pi * n * cycles) / n for n in range(1, 20))
    return ((tone + rng.normal(0, 0.02, len(time))) * 5000).astype(np.int16)


def test_two_sounds_that_repeat_the_same_are_no_copies():
    assert alike([(None, glide(0)), (None, glide(1))]) == {(0, 1): REPEATING}
    frames = scene(0)
    assert alike([(frames, glide(0)), (frames, glide(1))]) == {(0, 1): "picture"}


def test_a_short_sound_amid_silence_is_found_again():
    quiet = np.zeros(40_000, np.int16)
    first = np.concatenate([quiet[:8_000], sound(0, 2.2), quiet])
    second = np.concatenate([quiet[:20_000], sound(0, 2.2), quiet[:8_000]])
    assert alike([(None, first), (None, second)]) == {(0, 1): "sound"}


def test_black_and_silent_clips_are_like_nothing():
    nothing = (np.zeros((40, 96, 128, 3), np.uint8), np.zeros(80_000, np.int16))
    assert alike([nothing, nothing, (None, nothing[1])]) == {}
    assert alike([]) == {}


def test_unrelated_clips_are_not_alike():
    assert alike([(scene(seed), sound(seed)) for seed in range(60)]) == {}


def random_codes(num_clips, num_codes, num_bits):
    """Codes of which every seventh clip has those of an earlier one, some time later."""
    generator = np.random.default_rng(0)
    made = []
    for clip in range(num_clips):
        values = generator.integers(0, 1 << num_bits, num_codes, dtype=np.uint64)
        if clip % 7 == 3:
            values = np.roll(made[clip // 2].values, clip % 3)
        made.append(Codes(values, generator.random(num_codes) > 0.1))
    return made


@pytest.mark.parametrize(("rule", "num_codes"), [(FRAME_RULE, 40), (SOUND_RULE, 148)])
def test_what_is_found_does_not_depend_on_how_much_is_sorted_at_a_time(
    rule, num_codes, monkeypatch
):
    codes = random_codes(700, num_codes, rule.num_bits - 1)
    found = find_pairs(codes, range(700), rule)
    assert len(found) >= 100
    monkeypatch.setattr(near_duplicates, "_SORTED", 3_000)
    monkeypatch.setattr(near_duplicates, "_ROUND", 100)
    assert find_pairs(codes, range(700), rule) == found


@pytest.mark.parametrize(
    ("rule", "num_codes", "num_bytes"), [(FRAME_RULE, 40, 2_000), (SOUND_RULE, 148, 4_500)]
)
def test_a_clip_more_takes_little_memory(rule, num_codes, num_bytes, monkeypatch):
    monkeypatch.setattr(near_duplicates, "_SORTED", 20_000)
    monkeypatch.setattr(near_duplicates, "_ROUND", 2_000)
    codes = random_codes(3_000, num_codes, rule.num_bits - 1)
    tracemalloc.start()
    find_pairs(codes, range(3_000), rule)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000 * num_bytes


def test_codes_survive_a_column_of_a_table():
    for one in (frame_codes(scene(0), RATE), sound_codes(sound(0), SAMPLE_RATE), NOTHING):
        again = Codes.from_bytes(one.to_bytes())
        assert np.array_equal(again.values, one.values)
        assert np.array_equal(again.valid, one.valid)


def test_small_and_short_clips_have_codes():
    assert len(frame_codes(np.zeros((1, 6, 8, 3), np.uint8), RATE).values) == 1
    assert len(sound_codes(np.zeros(100, np.int16), SAMPLE_RATE).values) == 0
    assert len(sound_codes(np.zeros(1600, np.int16), 800).values) == 0

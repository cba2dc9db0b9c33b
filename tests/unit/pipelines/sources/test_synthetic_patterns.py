"""Kinds of made scenes: what is heard happens when it is seen."""

import numpy as np
import pytest

from pipelines.sources.synthetic_patterns import KINDS

TIMES = np.arange(0.0, 4.0, 1.0 / 1000.0)


def state_of(kind, seed=0):
    state = KINDS[kind](np.random.default_rng(seed))(TIMES)
    names = ("x", "y", "size", "turns", "visible", "loudness", "semitones")
    return {name: np.broadcast_to(getattr(state, name), TIMES.shape) for name in names}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_an_object_stays_about_the_picture_and_its_voice_in_range(kind, seed):
    state = state_of(kind, seed)
    assert np.abs(state["x"]).max() <= 1.2
    assert np.abs(state["y"]).max() <= 1.2
    assert 0.0 <= state["loudness"].min() < state["loudness"].max() + 1e-9 <= 1.0 + 1e-6
    assert np.abs(state["semitones"]).max() <= 12.0


@pytest.mark.parametrize("kind", KINDS)
def test_both_picture_and_sound_change_several_times_in_two_seconds(kind):
    state = state_of(kind)
    picture = state["x"] + 2.0 * state["y"] + state["size"] + 4.0 * state["visible"]
    picture = picture + np.cos(2.0 * np.pi * state["turns"])
    for signal in (picture, state["loudness"] + state["semitones"]):
        centered = signal[:2000] - signal[:2000].mean()
        assert centered.std() > 0.05
        assert (np.diff(np.sign(centered)) != 0).sum() >= 3


def test_a_bounce_is_loudest_on_the_floor():
    state = state_of("bounce")
    loud = state["loudness"] > 0.98
    assert loud.any()
    assert state["y"][loud].min() > 0.95


def test_a_blinking_object_sounds_only_while_it_is_there():
    state = state_of("blink")
    np.testing.assert_array_equal(state["loudness"] > 0.0, state["visible"] > 0.0)


@pytest.mark.parametrize(("kind", "axis"), [("swing", "x"), ("sweep", "x"), ("fall", "y")])
def test_the_pitch_follows_the_position(kind, axis):
    state = state_of(kind)
    assert abs(np.corrcoef(state[axis], state["semitones"])[0, 1]) > 0.99


def test_colliding_objects_are_loudest_where_they_meet():
    state = state_of("collide")
    loud = state["loudness"] > 0.95
    assert loud.any()
    assert state["x"][loud].max() < 0.25


def test_a_jump_changes_place_and_note_at_the_same_moments():
    state = state_of("jump")
    np.testing.assert_array_equal(
        np.diff(state["x"] + 10.0 * state["y"]) != 0.0, np.diff(state["semitones"]) != 0.0
    )

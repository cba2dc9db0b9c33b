"""Windows are evenly spread, inside the segment, and always as long as asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.media.windows import audio_windows, video_windows, window_starts


@pytest.mark.parametrize(
    ("available", "needed", "count", "starts"),
    [
        (40, 32, 2, [0, 8]),
        (40, 32, 3, [0, 4, 8]),
        (40, 32, 1, [4]),
        (34, 32, 9, [0, 1, 2]),
        (32, 32, 3, [0]),
        (5, 32, 3, [0]),
    ],
)
def test_starts_are_evenly_spread(available, needed, count, starts):
    assert window_starts(available, needed, count) == starts


@given(st.integers(1, 90), st.integers(1, 60), st.integers(1, 6))
def test_windows_are_whole_and_inside(available, needed, count):
    frames = np.arange(available, dtype=np.uint8)[:, None, None, None]
    windows = video_windows(frames, needed, count)
    assert 1 <= len(windows) <= count
    assert all(len(window) == needed for window in windows)
    samples = np.arange(available, dtype=np.int16)
    assert [len(window) for window in audio_windows(samples, needed, count)] == [needed] * len(
        windows
    )


def test_a_short_segment_is_looped_in_picture_and_silent_at_its_end_in_sound():
    frames = np.arange(3, dtype=np.uint8)[:, None, None, None]
    (video,) = video_windows(frames, 7, 2)
    assert video.ravel().tolist() == [0, 1, 2, 0, 1, 2, 0]
    (audio,) = audio_windows(np.array([5, 6], np.int16), 4, 2)
    assert audio.tolist() == [5, 6, 0, 0]

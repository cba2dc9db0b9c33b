import numpy as np
import pytest

from pipelines.media.picture_gaps import picture_gaps
from tests.helpers.timed_scenes import decode, remux, write_scene

RATE = 25
EVEN = np.arange(100) / RATE


def test_one_missing_picture_is_a_gap():
    assert picture_gaps(EVEN, []) == []
    assert picture_gaps(np.delete(EVEN, [20, 50, 51]), []) == [19 / RATE, 49 / RATE]


@pytest.mark.parametrize("rate", [23.976, 29.97, 59.94, 120])
def test_times_that_are_rounded_to_milliseconds_are_constant(rate):
    shown = np.round(np.arange(200) / rate, 3)
    assert picture_gaps(shown, []) == []
    assert picture_gaps(np.delete(shown, 70), []) == [shown[69]]


def test_a_rate_that_varies_has_no_gaps():
    rng = np.random.default_rng(0)
    assert picture_gaps(np.cumsum(rng.uniform(0.02, 0.06, 200)), []) == []
    pulled_down = np.cumsum(np.tile([2, 3], 100)) / 60
    assert picture_gaps(pulled_down, []) == []
    slides = np.array([0.0, 14.0, 28.0, 40.0])
    assert picture_gaps(slides, []) == []
    mostly_still = EVEN[np.sort(rng.permutation(100)[:50])]
    assert picture_gaps(mostly_still, []) == []


def test_a_leap_is_no_gap():
    shown = np.concatenate([EVEN, EVEN + 4.2])
    assert picture_gaps(shown, []) == [EVEN[-1]]
    assert picture_gaps(shown, [4.1]) == []


@pytest.mark.parametrize(
    ("suffix", "codecs"), [(".mkv", ("libx264", "aac")), (".ts", ("mpeg2video", "mp2"))]
)
def test_pictures_that_the_container_lost_are_counted(tmp_path, suffix, codecs):
    whole = write_scene(tmp_path / f"whole{suffix}", 0, 10, codecs=codecs)
    lost = {30, 31, 90, 200}
    path = remux(
        whole,
        tmp_path / f"lost{suffix}",
        lambda kind, now, number: None if kind == "video" and number in lost else now,
    )
    assert [segment.repairs.picture_gaps for segment in decode(path)] == [2, 1]
    assert [segment.repairs.picture_gaps for segment in decode(whole)] == [0, 0]


@pytest.mark.parametrize("bframes", [0, 1, 2])
@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_the_delay_of_an_encoder_is_no_gap(tmp_path, codec, bframes):
    codecs = (codec, "libmp3lame")
    path = write_scene(tmp_path / "delayed.avi", 0, 3, codecs=codecs, bframes=bframes)
    assert [segment.repairs.picture_gaps for segment in decode(path)] == [0]
    assert picture_gaps(np.delete(EVEN, [1, 2, 3, 4]), []) == [0.0]

import dataclasses

import pytest

from pipelines.ingest.plan import UnitSource
from pipelines.ingest.worker import in_stretch
from pipelines.media.container import DecodeError
from pipelines.media.decode import Segment
from tests.helpers.clip_datasets import INFO


def kept(seconds, start, end):
    """Starts of the segments of 2 s that are left of a file as long as that."""
    info = dataclasses.replace(INFO, duration_seconds=seconds)
    source = UnitSource("a", "a", "0", 1, None, None, None, start_seconds=start, end_seconds=end)
    segments = [Segment(at, 2.0, None, None, 0, info) for at in range(0, int(seconds), 2)]
    return [segment.start_seconds for segment in in_stretch(source, segments)]


@pytest.mark.parametrize(
    ("stretch", "expected"),
    [
        ((30.0, 38.0), [0, 2, 4, 6]),
        ((30.0, 38.9), [0, 2, 4, 6]),
        ((30.0, 37.1), [0, 2, 4, 6]),
        # Whole, it would end at 14 s at least.
        ((6.0, 14.0), [0, 2, 4, 6]),
        # The video ended before its stretch did.
        ((30.0, 40.0), [0, 2, 4, 6]),
        ((8.0, 23.0), [0, 2, 4, 6]),
    ],
)
def test_a_file_that_was_cut_to_its_stretch_is_kept_whole(stretch, expected):
    assert kept(8.0, *stretch) == expected


@pytest.mark.parametrize(
    ("stretch", "expected"),
    [
        ((2.0, 6.0), [2, 4]),
        ((4.0, 14.0), [4, 6]),
        ((6.0, 21.0), [6]),
        ((None, 6.0), [0, 2, 4]),
        ((4.0, None), [4, 6]),
        ((None, None), [0, 2, 4, 6]),
    ],
)
def test_of_a_whole_file_only_the_stretch_is_kept(stretch, expected):
    assert kept(8.0, *stretch) == expected


def test_a_file_without_its_stretch_is_too_short():
    with pytest.raises(DecodeError, match="no segment lies in the stretch 30 to 34 s") as caught:
        kept(8.0, 30.0, 34.0)
    assert caught.value.reason == "too_short"

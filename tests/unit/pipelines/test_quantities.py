"""Counts, durations and sizes as people read them, on both sides of every change of unit."""

import pytest

from pipelines.quantities import byte_size, counted, duration


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 clips"), (1, "1 clip"), (2, "2 clips"), (12_345, "12,345 clips"), (0.5, "0.5 clips")],
)
def test_a_noun_follows_its_count(count, text):
    assert counted(count, "clip") == text


def test_irregular_plurals_are_given():
    assert [counted(n, "class", "classes") for n in (1, 3)] == ["1 class", "3 classes"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (93_660, "26 h 01 min"),
    ],
)
def test_a_duration_never_shows_sixty(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1_000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_951, "1.0 MB"),
        (2_500_000_000_000, "2.5 TB"),
    ],
)
def test_a_size_never_shows_a_thousand(num_bytes, text):
    assert byte_size(num_bytes) == text

import io

import pytest

from pipelines.media.streams.matroska import _clusters
from tests.helpers.timed_scenes import decode, mismatches, remux, seen_and_heard, write_scene

NEGATIVE = {"avoid_negative_ts": "disabled"}
KINDS = {".mkv": ("libx264", "aac"), ".webm": ("libvpx", "libopus")}


def before_zero(folder, suffix, seconds, *, bframes=0, sound=(0, 6), codecs=None):
    """A scene of six seconds of which the first ones lie before zero."""
    made = folder / ("made.mp4" if suffix == ".mkv" else f"made{suffix}")
    write_scene(made, 0, 6, codecs=codecs or KINDS[suffix], bframes=bframes, sound=sound)
    target = folder / f"before{suffix}"
    return remux(made, target, lambda _, now, __: now - seconds, NEGATIVE)


def ticks(first, stop):
    return [second for second in range(first, stop) for _ in range(8)]


@pytest.mark.parametrize(
    ("suffix", "bframes", "seconds"),
    [(".mkv", 2, 0.3), (".mkv", 0, 4.0), (".mkv", 2, 20.0), (".webm", 0, 4.0)],
)
def test_what_lies_before_zero_keeps_its_time(tmp_path, suffix, bframes, seconds):
    for sound in ((0, 6), (2, 6)):
        path = before_zero(tmp_path, suffix, seconds, bframes=bframes, sound=sound)
        segments = decode(path, min_segment_seconds=0.5)
        assert mismatches(segments) == []
        seen, heard = seen_and_heard(segments)
        assert [number // 25 for number in seen] == pytest.approx(ticks(0, 6), abs=1)
        assert len(seen) == 48
        assert heard[8 * sound[0] + 1 : 47] == pytest.approx(ticks(*sound)[1:-1], abs=1)
        assert all(segment.repairs.rebased_clocks == 0 for segment in segments)
        assert all(segment.repairs.sound_gaps == 0 for segment in segments)


@pytest.mark.parametrize("codecs", [("libx264", ""), ("", "aac")])
def test_one_stream_before_zero_is_whole(tmp_path, codecs):
    path = before_zero(tmp_path, ".mkv", 4.0, codecs=codecs)
    segments = decode(path, min_segment_seconds=0.5)
    seen, heard = seen_and_heard(segments)
    if codecs[0]:
        assert [number // 25 for number in seen] == ticks(0, 6)
    else:
        assert heard[:47] == ticks(0, 6)[:47]
    assert sum(segment.repairs.clock_leaps for segment in segments) == 0


def test_clusters_are_found_whatever_their_size_looks_like():
    header = b"\x1f\x43\xb6\x75"
    stored = [
        header + b"\x90\xe7\x81\x05",
        header + b"\x01" + b"\xff" * 7 + b"\xe7\x82\x01\x00",  # of unknown size, as live streams
        header + b"\x41\x00\xbf\x84abcd\xe7\x88" + b"\xff" * 8,  # with a checksum; minus one
    ]
    file = io.BytesIO(b"junk" + b"..".join(stored))
    assert [(each.position, each.time) for each in _clusters(file)] == [
        (4, 5),
        (14, 256),
        (32, -1),
    ]

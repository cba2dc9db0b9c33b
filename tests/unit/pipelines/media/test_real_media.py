"""What is in the folder of real media, good and odd, goes through the decoder process."""

from collections import Counter

import pytest

from pipelines.media.container import DecodeError
from pipelines.media.decoder.process import DecoderProcess
from pipelines.media.reasons import REASONS
from tests.helpers.media import DECODE

SETTINGS = DECODE | {"min_segment_seconds": 1.1, "short_side": 128}


def outcome(decoder, path):
    """The reason why a file is rejected and its message, or its segments."""
    try:
        return None, list(decoder.segments(str(path), **SETTINGS))
    except DecodeError as error:
        return error.reason, error.message


@pytest.mark.parametrize(("folder", "fewest"), [("odd", 30), ("singles", 20), ("film", 12)])
def test_each_file_gives_segments_or_a_reason(data_dir, folder, fewest):
    decoder = DecoderProcess(max_memory_bytes=2_000_000_000, timeout_seconds=60.0, formats="all")
    paths = sorted(path for path in (data_dir / folder).rglob("*") if path.is_file())
    outcomes = [outcome(decoder, path) for path in paths]
    decoder.close()
    assert all(message for reason, message in outcomes if reason)
    reasons = Counter(reason for reason, _ in outcomes)
    assert set(reasons) - {None} <= set(REASONS) - {"decoder_crashed", "decoder_timeout"}
    assert reasons[None] >= fewest
    for segment in (segment for reason, found in outcomes if not reason for segment in found):
        assert segment.frames is not None or segment.waveform is not None
        if segment.frames is not None:
            assert len(segment.frames) == segment.duration_seconds * 8
        if segment.waveform is not None:
            assert len(segment.waveform) == segment.duration_seconds * 16_000

"""Files that lie, break off or are damaged: each gives segments or a documented reason.

All of it goes through the decoder process with small limits on memory and time; a crash or a
timeout of that process is allowed only where the test says so.
"""

import struct
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.media.container import DecodeError
from pipelines.media.decoder.process import DecoderProcess
from pipelines.media.reasons import REASONS
from pipelines.media.streams.selection import probe
from tests.helpers.media import DECODE_SHORT, tone, write_media, write_numbered

MAX_MEMORY_BYTES = 400_000_000
SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".ts", ".mov", ".wav", ".gif", ".flac", ".mp3")
NUM_MUTANTS = 2_000
NUM_CUTS = 50


@pytest.fixture(scope="module")
def decoder():
    process = DecoderProcess(
        max_memory_bytes=MAX_MEMORY_BYTES, timeout_seconds=120.0, formats="all"
    )
    yield process
    process.close()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """The bytes of a good file in each format."""
    folder = tmp_path_factory.mktemp("good")
    paths = [write_numbered(folder / f"clip{suffix}", 50) for suffix in SUFFIXES[:6]]
    codecs = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame"}
    for suffix, codec in codecs.items():
        paths.append(write_media(folder / f"clip{suffix}", waveform=tone(2.0), codecs=("", codec)))
    paths.append(write_gif(folder / "clip.gif"))
    return {path.suffix: path.read_bytes() for path in paths}


def write_gif(path):
    images = [Image.fromarray(np.full((48, 64), 10 * number, np.uint8)) for number in range(20)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=100)
    return path


def outcome(decoder, path):
    """The reason of a reject, or None for segments, which must be whole."""
    failure = None
    try:
        for segment in decoder.segments(str(path), **DECODE_SHORT):
            check(segment)
    except DecodeError as error:
        failure = error
    if failure is None:
        return None
    assert failure.message
    assert failure.reason in REASONS
    return failure.reason


def check(segment):
    assert segment.frames is not None or segment.waveform is not None
    assert 0 < segment.duration_seconds <= 1.0
    if segment.frames is not None:
        assert len(segment.frames) == round(segment.duration_seconds * 8)
        assert min(segment.frames.shape[1:3]) <= 32
    if segment.waveform is not None:
        assert len(segment.waveform) == round(segment.duration_seconds * 16_000)


def patched(data, pattern, offset, value, count=1):
    """Writes bytes behind each of the first occurrences of a pattern."""
    data, at = bytearray(data), -1
    for _ in range(count):
        at = data.find(pattern, at + 1)
        assert at >= 0, pattern
        data[at + offset : at + offset + len(value)] = value
    return bytes(data)


HUGE, BILLION = 65_000, 1_000_000_000
LIES = {
    "y4m 65000 x 65000": lambda _: (
        ".y4m",
        b"YUV4MPEG2 W65000 H65000 F25:1 C420\n" + b"FRAME\n" + bytes(5000),
    ),
    "gif 65000 x 65000": lambda seeds: (
        ".gif",
        patched(seeds[".gif"], b"GIF8", 6, struct.pack("<HH", HUGE, HUGE)),
    ),
    "mp4 sample entry 65000 x 65000": lambda seeds: (
        ".mp4",
        patched(seeds[".mp4"], b"avc1", 28, struct.pack(">HH", HUGE, HUGE), count=2),
    ),
    "mp4 of a billion samples": lambda seeds: (
        ".mp4",
        patched(seeds[".mp4"], b"stsz", 12, struct.pack(">I", BILLION)),
    ),
    "mp4 of a billion equal samples": lambda seeds: (
        ".mp4",
        patched(seeds[".mp4"], b"stsz", 8, struct.pack(">II", 1, BILLION)),
    ),
    "mp4 whose first frame lasts a billion": lambda seeds: (
        ".mp4",
        patched(seeds[".mp4"], b"stts", 12, struct.pack(">II", 1, BILLION)),
    ),
    "mp4 of a billion durations": lambda seeds: (
        ".mp4",
        patched(seeds[".mp4"], b"stts", 8, struct.pack(">II", 1, BILLION)),
    ),
    "avi 65000 x 65000": lambda seeds: (
        ".avi",
        patched(seeds[".avi"], b"strf", 12, struct.pack("<II", HUGE, HUGE)),
    ),
    "avi jpeg 65000 x 65000": lambda seeds: (
        ".avi",
        patched(seeds[".avi"], b"\xff\xc0", 5, struct.pack(">HH", HUGE, HUGE), count=50),
    ),
    "avi of a billion frames": lambda seeds: (
        ".avi",
        patched(seeds[".avi"], b"avih", 24, struct.pack("<I", BILLION)),
    ),
    "wav of four gigabytes": lambda seeds: (
        ".wav",
        patched(seeds[".wav"], b"data", 4, struct.pack("<I", 2**32 - 2)),
    ),
    "wav of 65535 channels": lambda seeds: (
        ".wav",
        patched(seeds[".wav"], b"fmt ", 10, struct.pack("<H", 65_535)),
    ),
    "wav of a billion samples a second": lambda seeds: (
        ".wav",
        patched(seeds[".wav"], b"fmt ", 12, struct.pack("<I", BILLION)),
    ),
    "wav of one sample a second": lambda seeds: (
        ".wav",
        patched(seeds[".wav"], b"fmt ", 12, struct.pack("<I", 1)),
    ),
    "nothing": lambda _: (".mp4", b""),
    "zeros": lambda _: (".mp4", bytes(100_000)),
    "ones": lambda _: (".mp3", b"\xff" * 100_000),
    "text": lambda _: (".mkv", b"This is no film.\n" * 1000),
    "a program": lambda _: (".mp4", Path(sys.executable).read_bytes()[:200_000]),
    "noise": lambda _: (".ts", np.random.default_rng(0).bytes(200_000)),
    "mp4 called mkv": lambda seeds: (".mkv", seeds[".mp4"]),
    "webm called jpg": lambda seeds: (".jpg", seeds[".webm"]),
    "wav called mp4": lambda seeds: (".mp4", seeds[".wav"]),
    "two files in one": lambda seeds: (".ts", seeds[".ts"] + seeds[".mp4"] + seeds[".ts"]),
    "the same stream twice": lambda seeds: (".ts", seeds[".ts"] * 2),
    "playlist of itself": lambda _: (
        ".m3u8",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nclip.m3u8\n#EXTINF:5,\nclip.m3u8\n",
    ),
    "list of itself": lambda _: (".ffconcat", b"ffconcat version 1.0\nfile clip.ffconcat\n" * 3),
}
GOOD = {
    "mp4 called mkv",
    "webm called jpg",
    "wav called mp4",
    "the same stream twice",
    "avi of a billion frames",
    "wav of four gigabytes",
}
"""What FFmpeg and we see through."""


@pytest.mark.parametrize("lie", LIES)
def test_what_lies_costs_little_and_has_a_reason(decoder, seeds, tmp_path, lie):
    suffix, data = LIES[lie](seeds)
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(data)
    found = outcome(decoder, path)
    assert found not in {"decoder_crashed", "decoder_timeout"}
    if lie in GOOD:
        assert found is None
    # The decoder is as good as before.
    path.with_suffix(".mp4").write_bytes(seeds[".mp4"])
    assert outcome(decoder, path.with_suffix(".mp4")) is None


def test_what_breaks_off_anywhere_costs_little_and_has_a_reason(decoder, seeds, tmp_path):
    """One format by default; `test_all_formats_broken_off` does the others."""
    assert cut_everywhere(decoder, seeds, tmp_path, ".ts", NUM_CUTS)[None] > NUM_CUTS // 3


@pytest.mark.slow
def test_all_formats_broken_off(decoder, seeds, tmp_path):
    for suffix in seeds:
        found = cut_everywhere(decoder, seeds, tmp_path, suffix, NUM_CUTS)
        assert found.total() == NUM_CUTS


def cut_everywhere(decoder, seeds, tmp_path, suffix, num_cuts):
    data, path = seeds[suffix], tmp_path / f"cut{suffix}"
    found = Counter()
    for length in np.linspace(0, len(data) - 1, num_cuts).astype(int):
        path.write_bytes(data[:length])
        found[outcome(decoder, path)] += 1
    assert not found.keys() & {"decoder_crashed", "decoder_timeout", "out_of_memory"}
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_random_damage_never_ends_the_decoder(decoder, seeds, tmp_path):
    generator = np.random.default_rng(0)
    found = Counter()
    for number in range(NUM_MUTANTS):
        suffix = SUFFIXES[number % len(SUFFIXES)]
        data = np.frombuffer(seeds[suffix], np.uint8).copy()
        # Most of a format's structure is at its beginning.
        reach = len(data) if number % 3 else min(len(data), 2_000)
        offsets = generator.integers(0, reach, generator.integers(1, 9))
        data[offsets] ^= generator.integers(1, 256, len(offsets)).astype(np.uint8)
        path = tmp_path / f"mutant{suffix}"
        path.write_bytes(data)
        found[outcome(decoder, path)] += 1
    assert found.total() == NUM_MUTANTS
    assert found[None] > NUM_MUTANTS // 3
    assert not found.keys() & {"decoder_crashed", "decoder_timeout"}


@st.composite
def edits(draw):
    """A format, what is cut out of its file, and what is written over it where."""
    suffix = draw(st.sampled_from(SUFFIXES))
    share = st.floats(0.0, 1.0)
    cut = draw(st.tuples(share, st.integers(0, 300)))
    pieces = st.tuples(share, st.binary(min_size=1, max_size=8))
    return suffix, cut, draw(st.lists(pieces, max_size=4))


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edit=edits())
def test_fuzzed_files_end_in_segments_or_reasons(decoder, seeds, tmp_path, edit):
    fuzz(decoder, seeds, tmp_path, edit)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=2_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edit=edits())
def test_many_fuzzed_files_end_in_segments_or_reasons(decoder, seeds, tmp_path, edit):
    fuzz(decoder, seeds, tmp_path, edit)


def fuzz(decoder, seeds, tmp_path, edit):
    suffix, (cut_at, cut_length), pieces = edit
    data = bytearray(seeds[suffix])
    at = int(cut_at * len(data))
    del data[at : at + cut_length]
    for share, piece in pieces:
        at = int(share * len(data))
        data[at : at + len(piece)] = piece
    path = tmp_path / f"fuzzed{suffix}"
    path.write_bytes(data)
    assert outcome(decoder, path) not in {"decoder_crashed", "decoder_timeout"}
    try:
        info = probe(str(path), "all")
    except DecodeError as error:
        reason = error.reason
    else:
        reason = None
        assert info.container
    assert reason in {None, "not_media", "no_streams", "undecodable"}

"""Files that FFmpeg cannot read as one after they were joined."""

import io

import av
import numpy as np
import pytest

from pipelines.media import container, packets
from pipelines.media.container import DecodeError
from pipelines.media.decode import decode_segments
from pipelines.media.file_view import View
from pipelines.media.joined_files import Part
from pipelines.media.streams.program_stream import clock_changes
from pipelines.media.streams.transport_stream import program_changes
from tests.helpers.media import DECODE
from tests.helpers.timed_scenes import (
    decode,
    joined,
    mismatches,
    seen_and_heard,
    tones,
    write_scene,
)


def seconds_of(path, **changes):
    """The seconds seen and heard at every fourth of each second, and the segments."""
    segments = decode(path, **changes)
    assert mismatches(segments) == []
    seen, sounds = seen_and_heard(segments)
    pictures = [None if number is None else number // 25 for number in seen]
    return pictures[4::8], sounds[4::8], segments


def num_leaps(segments):
    return sum(segment.repairs.clock_leaps for segment in segments)


TRANSPORT = {
    "other numbers": [
        (0, 5, ("libx264", "aac"), {}),
        (20, 25, ("libx264", "aac"), {"pid": "0x300"}),
    ],
    "other codecs": [(0, 5, ("libx264", "aac"), {}), (20, 25, ("mpeg2video", "mp2"), {})],
    "mute, sound": [(0, 5, ("libx264", ""), {}), (20, 25, ("", "aac"), {})],
    "sound, mute": [(20, 25, ("", "aac"), {}), (0, 5, ("libx264", ""), {})],
    "sound, whole": [(0, 5, ("", "aac"), {}), (20, 25, ("libx264", "aac"), {})],
}


@pytest.mark.parametrize("kind", TRANSPORT)
def test_transport_streams_whose_streams_change(tmp_path, kind):
    parts = []
    pictures, sounds = [], []
    for number, (first, stop, codecs, options) in enumerate(TRANSPORT[kind]):
        options = {"mpegts_start_pid": options["pid"]} if options else {}
        path = tmp_path / f"{number}.ts"
        parts.append(write_scene(path, first, stop, codecs=codecs, options=options))
        pictures += list(range(first, stop)) if codecs[0] else [None] * 5
        sounds += list(range(first, stop)) if codecs[1] else [None] * 5
    seen, heard, segments = seconds_of(joined(tmp_path / "all.ts", *parts))
    assert (seen, heard) == (pictures, sounds)
    assert num_leaps(segments) == 1
    assert [segment.decode_errors for segment in segments] == [0, 0]
    assert segments[0].repairs.rebased_clocks == 0
    assert segments[1].repairs.rebased_clocks == bool(pictures[5:] != [None] * 5) + bool(
        sounds[5:] != [None] * 5
    )


def test_program_changes_of_whole_streams(tmp_path):
    first = write_scene(tmp_path / "first.ts", 0, 2)
    mute = write_scene(tmp_path / "mute.ts", 0, 2, codecs=("libx264", ""))
    files = [first, mute, first]
    all_of = joined(tmp_path / "all.ts", *files).read_bytes()
    at = first.stat().st_size + mute.stat().st_size
    assert list(program_changes(View(io.BytesIO(all_of)), {0x100, 0x101})) == []
    # FFmpeg has not found the sound, so the last file begins anew.
    found = list(program_changes(View(io.BytesIO(all_of[first.stat().st_size :])), {0x100}))
    assert len(found) == 1
    assert 0 <= found[0] - (at - first.stat().st_size) <= 2 * 188
    with_times = b"".join(bytes(4) + all_of[n : n + 188] for n in range(0, len(all_of), 188))
    assert list(program_changes(View(io.BytesIO(with_times)), {0x100, 0x101})) == []
    for noise in (b"", b"\x47" * 5000, np.random.default_rng(0).bytes(10_000)):
        assert list(program_changes(View(io.BytesIO(noise)), set())) == []


def test_a_transport_stream_that_returns_to_its_first_codecs(tmp_path):
    first = write_scene(tmp_path / "first.ts", 0, 5)
    other = write_scene(tmp_path / "other.ts", 20, 25, codecs=("mpeg2video", "mp2"))
    seen, heard, segments = seconds_of(joined(tmp_path / "all.ts", first, other, first))
    assert seen == heard == [*range(5), *range(20, 25), *range(5)]
    assert sum(segment.decode_errors for segment in segments) == 0


H264, MPEG4 = ("libx264", "aac"), ("mpeg4", "mp3")
COPIED = {
    ".mp4": [H264, MPEG4, H264],
    ".flv": [H264, H264, H264],
    ".mkv": [H264, MPEG4, ("libx264", "")],
    "2.mkv": [("libx264", ""), ("", "aac"), H264],
    ".avi": [MPEG4, ("libx264", "pcm_s16le"), MPEG4],
    ".wav": [("", "pcm_s16le"), ("", "pcm_u8"), ("", "pcm_s16le")],
    ".flac": [("", "flac")] * 3,
}


@pytest.mark.parametrize("suffix", COPIED)
def test_files_that_were_copied_behind_each_other(tmp_path, suffix):
    parts = []
    pictures, sounds = [], []
    for first, codecs in zip([0, 20, 10], COPIED[suffix], strict=True):
        parts.append(write_scene(tmp_path / f"{first}{suffix}", first, first + 5, codecs=codecs))
        pictures += list(range(first, first + 5)) if codecs[0] else [None] * 5
        sounds += list(range(first, first + 5)) if codecs[1] else [None] * 5
    path = joined(tmp_path / f"all{suffix}", *parts)
    seen, heard, segments = seconds_of(path)
    assert seen == pictures
    assert heard == sounds
    assert num_leaps(segments) == 2
    assert {segment.info.duration_seconds for segment in segments} == {0.0}
    again = decode(io.BytesIO(path.read_bytes()))
    assert [one.start_seconds for one in again] == [one.start_seconds for one in segments]


def test_fragmented_files_that_were_joined(tmp_path):
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    parts = [
        write_scene(tmp_path / f"{first}.mp4", first, first + 5, options=options)
        for first in (0, 20, 10)
    ]
    seen, heard, segments = seconds_of(joined(tmp_path / "all.mp4", *parts))
    assert seen == heard == [*range(5), *range(20, 25), *range(10, 15)]
    assert num_leaps(segments) == 2


@pytest.mark.parametrize(
    "others", [[("mpeg2video", "ac3")], [("mpeg2video", ""), ("mpeg2video", "ac3")]]
)
@pytest.mark.parametrize("suffix", [".mpg", ".vob"])
def test_program_streams_with_sound_of_another_kind(tmp_path, suffix, others):
    kinds = [("mpeg2video", "mp2"), *others, ("mpeg2video", "mp2")]
    parts = [
        write_scene(tmp_path / f"{number}{suffix}", 15 * number, 15 * number + 5, codecs=kind)
        for number, kind in enumerate(kinds[:3])
    ]
    seen, heard, segments = seconds_of(joined(tmp_path / f"all{suffix}", *parts))
    pieces = [range(15 * number, 15 * number + 5) for number in range(3)]
    assert seen == [second for piece in pieces for second in piece]
    assert heard == [
        second if kind[1] else None
        for piece, kind in zip(pieces, kinds, strict=False)
        for second in piece
    ]
    assert sum(segment.decode_errors for segment in segments) == 0
    assert num_leaps(segments) == 2


def test_the_clock_of_program_streams_is_read(tmp_path):
    parts = [
        write_scene(tmp_path / f"{number}.mpg", 0, 5, codecs=codecs, options={"muxrate": "2000000"})
        for number, codecs in enumerate([("mpeg2video", "mp2"), ("mpeg1video", "mp2")])
    ]
    sizes = [part.stat().st_size for part in parts]
    path = joined(tmp_path / "all.mpg", *parts, *parts)
    expected = [sizes[0], sum(sizes), sum(sizes) + sizes[0]]
    assert list(clock_changes(View(io.BytesIO(path.read_bytes())))) == expected
    for noise in (b"", b"\x00\x00\x01\xba", np.random.default_rng(0).bytes(100_000)):
        assert list(clock_changes(View(io.BytesIO(noise)))) == []


def test_a_picture_that_begins_where_the_sound_steps_back(tmp_path):
    mpeg2 = ("mpeg2video", "mp2")
    sound = write_scene(tmp_path / "sound.mpg", 0, 10, codecs=("", "mp2"))
    # The sound before ends at 10.5 s of this clock, because the container begins at 0.5 s.
    both = write_scene(tmp_path / "both.mpg", 20, 25, codecs=mpeg2, offset=10.0)
    seen, heard, _ = seconds_of(joined(tmp_path / "all.mpg", sound, both))
    assert seen == [*[None] * 10, *range(20, 25)]
    assert heard == [*range(10), *range(20, 25)]


def test_a_picture_that_begins_after_what_is_probed(tmp_path, monkeypatch):
    sound = write_scene(tmp_path / "sound.mpg", 0, 10, codecs=("", "mp2"))
    whole = write_scene(tmp_path / "both.mpg", 20, 25, codecs=("mpeg2video", "mp2"), offset=10.5)
    # FFmpeg probes 5 MB at the beginning, and less at the end. Each pack gets some padding.
    padding = b"\x00\x00\x01\xbe" + (60_000).to_bytes(2, "big") + bytes(60_000)
    pack = b"\x00\x00\x01\xba"
    last_tone = np.tile(tones(24, 25), 10)  # the last picture is held
    last = write_scene(
        tmp_path / "last.mpg", 24, 34, codecs=("", "mp2"), waveform=last_tone, offset=15.5
    )
    for part in (sound, last):
        part.write_bytes(pack.join(each + padding for each in part.read_bytes().split(pack)))
        assert part.stat().st_size > 5_000_000
    path = joined(tmp_path / "all.mpg", sound, whole, last)
    seen, heard, segments = seconds_of(path)
    assert seen == [*[None] * 10, *range(20, 25), *[24] * 10]
    assert heard == [*range(10), *range(20, 25), *[24] * 10]
    assert all(segment.info.declares_picture for segment in segments)
    assert [segment.decode_errors for segment in segments] == [0] * 5
    # Packets that do not fit into memory are read again, of the same streams.
    monkeypatch.setattr(packets, "MAX_HELD_BYTES", 1000)
    assert seconds_of(path)[:2] == (seen, heard)
    # Beyond what is probed at most, it is counted as lost.
    monkeypatch.setattr(container, "_PROBES_ALL", {})
    _, heard, segments = seconds_of(path)
    assert heard == [*range(10), *range(20, 25), *[24] * 10]
    assert all(segment.info.declares_picture for segment in segments)
    assert [segment.decode_errors for segment in segments] == [1, 0, 0, 0, 0]


def test_sound_whose_rate_changes_has_no_hole(tmp_path):
    parts = [
        write_scene(tmp_path / f"{rate}.ts", first, first + 5, codecs=("", "mp2"), sound_rate=rate)
        for first, rate in ((0, 48_000), (20, 44_100), (10, 32_000))
    ]
    _, heard, segments = seconds_of(joined(tmp_path / "all.ts", *parts))
    assert heard == [*range(5), *range(20, 25), *range(10, 15)]
    assert sum(segment.repairs.sound_gaps for segment in segments) == 0


def write_vorbis(path, first, rate=48_000, layout="stereo"):
    """Writes five seconds of the scene, by FFmpeg's own encoder."""
    source = write_scene(path.with_suffix(".wav"), first, first + 5, codecs=("", "pcm_s16le"))
    with av.open(str(source)) as read, av.open(str(path), "w") as out:
        stream = out.add_stream("vorbis", rate=rate, layout=layout, options={"strict": "-2"})
        resampler = av.AudioResampler("fltp", layout, rate, frame_size=64)
        frames = [*read.decode(audio=0), None]
        for piece in [piece for frame in frames for piece in resampler.resample(frame)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return path


def test_chained_ogg_with_another_rate_and_codec(tmp_path):
    parts = [
        write_vorbis(tmp_path / "0.ogg", 0),
        write_vorbis(tmp_path / "1.ogg", 20, rate=44_100),
        write_scene(tmp_path / "2.ogg", 10, 15, codecs=("", "libopus")),
    ]
    _, heard, segments = seconds_of(joined(tmp_path / "all.ogg", *parts))
    assert heard == [*range(5), *range(20, 25), *range(10, 15)]
    assert num_leaps(segments) == 2
    assert [segment.info.audio_codec for segment in segments] == ["vorbis", "vorbis", "opus"]


def test_a_joined_file_without_a_segment_is_counted(tmp_path):
    first = write_scene(tmp_path / "first.mp4", 0, 5)
    short = write_scene(tmp_path / "short.mp4", 20, 20.4)
    for parts in ([first, short, first], [first, short], [short, first]):
        segments = decode(joined(tmp_path / "all.mp4", *parts))
        assert len(segments) == parts.count(first)
        assert [segment.decode_errors for segment in segments][-1] == 1
    with pytest.raises(DecodeError, match=r"0\.4. s") as caught:
        decode(joined(tmp_path / "all.mp4", short, short))
    assert caught.value.reason == "too_short"


def test_a_rest_that_another_file_follows_is_counted(tmp_path):
    parts = [write_scene(tmp_path / f"{first}.mp4", first, first + 5.8) for first in (0, 20)]
    seen, heard, segments = seconds_of(joined(tmp_path / "all.mp4", *parts))
    assert seen == heard == [*range(5), *range(20, 25)]
    # As everywhere, the rest at the end of the source is not counted.
    assert [segment.decode_errors for segment in segments] == [0, 1]


def test_a_transport_stream_that_is_scrambled_from_its_middle_is_counted(tmp_path):
    path = write_scene(tmp_path / "clip.ts", 0, 10)
    assert sum(segment.decode_errors for segment in decode(path)) == 0
    packets = [path.read_bytes()[at : at + 188] for at in range(0, path.stat().st_size, 188)]
    rng = np.random.default_rng(0)
    half = len(packets) // 2
    packets[half:] = [
        packet[:3] + bytes([packet[3] | 0x80]) + rng.bytes(184) for packet in packets[half:]
    ]
    path.write_bytes(b"".join(packets))
    segments = decode(path)
    assert 4 < sum(segment.duration_seconds for segment in segments) < 7
    assert sum(segment.decode_errors for segment in segments) >= 1


def test_limits_hold_for_all_joined_files_together(tmp_path):
    part = write_scene(tmp_path / "part.mp4", 0, 5)
    path = joined(tmp_path / "all.mp4", part, part, part)
    assert len(list(decode_segments(str(path), **DECODE, max_seconds=15.0))) == 3
    with pytest.raises(DecodeError, match="max_seconds") as caught:
        list(decode_segments(str(path), **DECODE, max_seconds=14.0))
    assert caught.value.reason == "too_long"


def test_a_part_reads_as_a_file():
    part = Part(io.BytesIO(bytes(range(100))), 10, 30)
    assert part.read() == bytes(range(10, 30))
    assert part.read(5) == b""
    assert part.seek(-3, 2) == 17
    assert part.read(9) == bytes([27, 28, 29])
    assert part.seek(4) == 4
    assert (part.read(2), part.tell()) == (bytes([14, 15]), 6)

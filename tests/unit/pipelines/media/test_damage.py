import random

import av
import pytest

from pipelines.media.container import DecodeError
from tests.helpers.timed_scenes import decode, joined, write_scene

X265 = {"preset": "ultrafast", "x265-params": "log-level=error:pools=none"}
KINDS = {
    "h264": (".mkv", ("libx264", ""), {}),
    "hevc": (".mkv", ("libx265", ""), X265),
    "ffv1": (".mkv", ("ffv1", ""), {"level": "3", "slicecrc": "1"}),
    "mpeg2": (".mkv", ("mpeg2video", ""), {}),
    "flac": (".mkv", ("", "flac"), {}),
    "ac3": (".mkv", ("", "ac3"), {}),
}


def damaged(source, target, fraction):
    """Copies a file and changes bytes of a share of its packets; returns how many."""
    rng = random.Random(0)
    num_damaged = 0
    with av.open(str(source)) as read, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(read.streams[0])
        for number, packet in enumerate(packet for packet in read.demux() if packet.size):
            data = bytearray(bytes(packet))
            if number > 5 and rng.random() < fraction:
                num_damaged += 1
                for _ in range(6):
                    data[rng.randrange(len(data) // 2, len(data))] ^= rng.randrange(1, 256)
            copy = av.Packet(bytes(data))
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.duration, copy.is_keyframe = packet.duration, packet.is_keyframe
            copy.stream = stream
            out.mux(copy)
    return num_damaged


@pytest.mark.parametrize("kind", KINDS)
def test_damage_that_only_the_decoder_notices_is_counted(tmp_path, kind):
    suffix, codecs, options = KINDS[kind]
    pix_fmt = "yuv420p" if kind == "hevc" else None
    whole = write_scene(
        tmp_path / f"whole{suffix}", 0, 6, codecs=codecs, codec_options=options, pix_fmt=pix_fmt
    )
    assert sum(segment.decode_errors for segment in decode(whole)) == 0
    path = tmp_path / f"damaged{suffix}"
    num_damaged = damaged(whole, path, 0.08)
    num_errors = sum(segment.decode_errors for segment in decode(path, max_damaged_fraction=1.0))
    assert num_errors >= 0.5 * num_damaged > 0
    num_damaged = damaged(whole, path, 0.9)
    with pytest.raises(DecodeError) as caught:
        decode(path, max_damaged_fraction=0.1)
    assert caught.value.reason in {"damaged", "undecodable"}


@pytest.mark.parametrize(
    ("suffix", "codecs"),
    [
        (".ogg", ("", "libopus")),
        (".mkv", ("libvpx", "libopus")),
        (".mkv", ("ffv1", "mp2")),
    ],
)
def test_damage_of_a_file_with_checksums_is_counted_whatever_the_codec(tmp_path, suffix, codecs):
    path = write_scene(tmp_path / f"whole{suffix}", 0, 10, codecs=codecs)
    assert sum(segment.decode_errors for segment in decode(path)) == 0
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(6):
        data = bytearray(whole)
        data[rng.randrange(len(data) // 4, len(data) * 3 // 4)] ^= rng.randrange(1, 256)
        path.write_bytes(data)
        assert sum(segment.decode_errors for segment in decode(path)) > 0


def test_a_file_whose_checksums_differ_almost_everywhere_says_so(tmp_path):
    path = write_scene(tmp_path / "whole.ogg", 0, 10, codecs=("", "libopus"))
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 7, len(data) * 17 // 20, len(data) // 40):
        data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(DecodeError, match=r"decodes?: damaged parts of the file: 8") as caught:
        decode(path)
    assert caught.value.reason == "undecodable"


def without_packets(path, share):
    """Removes packets of a transport stream, but none of its tables."""
    rng = random.Random(1)
    data = path.read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    kept = [
        packet
        for number, packet in enumerate(packets)
        if number < 50 or (packet[1] & 0x1F) == 0x10 or rng.random() > share
    ]
    path.write_bytes(b"".join(kept))
    return path


def test_parts_that_a_transport_stream_lost_are_counted(tmp_path):
    # FFmpeg conceals a picture that lacks some of its last bytes; no frame is marked.
    path = write_scene(tmp_path / "whole.ts", 0, 10, codecs=("libx265", ""), codec_options=X265)
    assert sum(segment.decode_errors for segment in decode(path)) == 0
    segments = decode(without_packets(path, 0.02))
    assert sum(segment.decode_errors for segment in segments) > 0


def test_an_end_of_a_joined_file_is_no_damage(tmp_path):
    parts = [write_scene(tmp_path / f"{first}.ts", first, first + 5) for first in (0, 20, 10)]
    segments = decode(joined(tmp_path / "all.ts", *parts))
    assert sum(segment.decode_errors for segment in segments) == 0

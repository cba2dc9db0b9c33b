"""Which containers and codecs are decoded by default, and what is said of the others."""

import io
import os
from itertools import chain
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.media.container import DecodeError, open_source
from pipelines.media.decode import decode_segments
from pipelines.media.formats import COMMON_CODECS, COMMON_CONTAINERS, NEVER, container_whitelist
from pipelines.media.streams.selection import probe
from tests.helpers.media import DECODE_SHORT, tone, write_media, write_numbered

DATA = Path(os.environ.get("XKD_DATA_DIR", "../shared/data"))


def refusal(source, formats="common"):
    with pytest.raises(DecodeError) as caught:
        list(decode_segments(source, formats=formats, **DECODE_SHORT))
    return caught.value


def test_the_lists_are_short():
    assert len(COMMON_CONTAINERS) <= 12
    assert len(COMMON_CODECS) <= 25
    assert not COMMON_CONTAINERS & NEVER


def test_all_are_those_that_say_themselves_what_they_are():
    allowed = set(container_whitelist("all").split(","))
    assert allowed >= COMMON_CONTAINERS
    assert not allowed & NEVER
    assert len(allowed) > 200


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv", ".avi", ".ts", ".mov"])
def test_usual_files_are_decoded(tmp_path, suffix):
    path = write_numbered(tmp_path / f"clip{suffix}", 50)
    assert len(list(decode_segments(str(path), **DECODE_SHORT))) == 2


@pytest.mark.parametrize(
    ("name", "codecs", "what"),
    [("clip.aiff", ("", "pcm_s16be"), "aiff"), ("clip.aac", ("", "aac"), "aac"),
     ("clip.nut", ("mpeg4", ""), "nut"), ("clip.mov", ("prores_ks", ""), "picture's codec prores"),
     ("clip.mov", ("mpeg4", "pcm_mulaw"), "sound's codec pcm_mulaw")],
)  # fmt: skip
@pytest.mark.parametrize("how", ["path", "descriptor", "object"])
def test_another_format_is_named_with_the_setting_that_allows_it(tmp_path, name, codecs, what, how):
    picture, sound = codecs
    pixel_format = "yuv422p10le" if picture == "prores_ks" else None
    path = write_media(
        tmp_path / name,
        [np.zeros((48, 64, 3), np.uint8)] * 50 if picture else (),
        tone(2.0) if sound else None,
        codecs=codecs,
        pixel_format=pixel_format,
    )
    with open(path, "rb") as file:
        source = {"path": str(path), "descriptor": file.fileno(), "object": file}[how]
        error = refusal(source)
        assert error.reason == "format_not_allowed"
        assert what in error.message
        assert "limits.formats=all" in error.message
        assert len(list(decode_segments(source, formats="all", **DECODE_SHORT))) == 2


@pytest.mark.parametrize("formats", ["common", "all"])
@pytest.mark.parametrize("suffix", [".asc", ".sbg", ".mp4", ".sw", ".ub", ".yuv", ".bin", ".g722"])
def test_text_and_raw_bytes_are_never_media_whatever_their_ending(tmp_path, formats, suffix):
    rng = np.random.default_rng(0)
    text = "\n".join(" ".join(map(str, rng.integers(0, 999, 12))) for _ in range(1000))
    for data in (text.encode(), b"\x1b[31mred\x1b[0m\n" * 500, rng.bytes(50_000)):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(data)
        assert refusal(str(path), formats).reason == "not_media"


@pytest.mark.parametrize("formats", ["common", "all"])
@pytest.mark.parametrize("name", ["text_60kB.asc", "tone30min.sbg"])
def test_files_of_the_field_that_are_no_media(formats, name):
    path = DATA / "field" / name
    if not path.exists():
        pytest.skip("no files of the field")
    assert refusal(str(path), formats).reason == "not_media"


@pytest.mark.parametrize("formats", ["common", "all"])
def test_a_file_that_names_others_is_not_media(tmp_path, formats):
    clip = write_numbered(tmp_path / "clip.mp4", 50)
    lists = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{clip}\n#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile {clip}\n",
        "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        assert refusal(str(tmp_path / name), formats).reason == "not_media"


def test_a_descriptor_stays_open_and_is_read_from_its_beginning(tmp_path):
    path = write_numbered(tmp_path / "clip.mkv", 50)
    with open(path, "rb") as file:
        file.seek(100)
        first = list(decode_segments(file.fileno(), **DECODE_SHORT))
        again = list(decode_segments(file.fileno(), **DECODE_SHORT))
    assert len(first) == len(again) == 2
    assert np.array_equal(first[0].frames, again[0].frames)


def write_streams(path, kinds):
    """A file of several pictures, by codec and pixel format."""
    packets = []
    with av.open(str(path), "w") as container:
        for codec, pixel_format in kinds:
            stream = container.add_stream(codec, 25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
            for number in range(50):
                frame.pts = number
                packets.append(stream.encode(frame))
            packets.append(stream.encode(None))
        for packet in chain(*packets):
            container.mux(packet)


def test_streams_that_are_not_looked_at_are_not_decoded(tmp_path):
    """FFmpeg decodes a little of each stream to learn what it is, of those allowed alone."""
    path = tmp_path / "clip.mov"
    write_streams(path, [("mpeg4", "yuv420p"), ("prores_ks", "yuv422p10le")])
    with open_source(str(path)) as common, open_source(str(path), "all") as every:
        assert [stream.codec_context.pix_fmt for stream in every.streams.video] == [
            "yuv420p",
            "yuv422p10le",
        ]
        assert common.streams.video[1].codec_context.pix_fmt is None
    assert probe(str(path)).video_codec == "mpeg4"


def test_a_stream_in_a_common_codec_is_taken_before_another(tmp_path):
    """The other one is not even tried."""
    path = tmp_path / "clip.mov"
    write_streams(path, [("prores_ks", "yuv422p10le"), ("mpeg4", "yuv420p")])
    with open_source(str(path), "all") as every:
        assert every.streams.video[0].codec_context.name == "prores"
    assert probe(str(path)).video_codec == "mpeg4"
    write_streams(path, [("prores_ks", "yuv422p10le")])
    assert refusal(str(path)).reason == "format_not_allowed"


def test_bytes_are_opened_as_files_are(tmp_path):
    data = write_numbered(tmp_path / "clip.mp4", 50).read_bytes()
    assert probe(io.BytesIO(data)) == probe(str(tmp_path / "clip.mp4"))

import gc
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from pipelines.media.decode import decode_segments
from pipelines.media.picture import Crop, fitted, same_shape
from pipelines.media.streams.declarations import parse_dump, read_declarations
from tests.helpers.media import DECODE, write_media, write_numbered
from tests.helpers.mp4_boxes import add_clean_aperture

CROP = Crop(left=8, right=16, top=12, bottom=6)


def framed(width=64, height=48):
    """Gray 200 where `CROP` leaves the picture, black around it."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[CROP.window(width, height)] = 200
    return frame


def write_cropped_matroska(path: Path) -> Path:
    """Writes `CROP` over the description of colors, which has as many bytes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        codec = stream.codec_context
        codec.color_range = codec.color_primaries = codec.color_trc = codec.colorspace = 1
        for _ in range(50):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(framed(), format="rgb24")))
        container.mux(stream.encode(None))
    borders = {b"\xaa": CROP.bottom, b"\xbb": CROP.top, b"\xcc": CROP.left, b"\xdd": CROP.right}
    elements = b"".join(b"\x54" + name + b"\x81" + bytes([size]) for name, size in borders.items())
    data = path.read_bytes()
    at = data.index(b"\x55\xb0\x90")
    path.write_bytes(data[:at] + elements + b"\xec\x81\x00" + data[at + 19 :])
    return path


def write_cropped_mp4(path: Path) -> Path:
    write_media(path, [framed()] * 50)
    right, down = (CROP.left - CROP.right) // 2, (CROP.top - CROP.bottom) // 2
    return add_clean_aperture(path, 64 - 24, 48 - 18, right, down)


@pytest.mark.parametrize(
    ("name", "write"),
    [("clip.mkv", write_cropped_matroska), ("clip.mp4", write_cropped_mp4)],
)
def test_what_the_container_crops_is_not_stored(tmp_path, name, write):
    path = write(tmp_path / name)
    with av.open(str(path)) as container:
        assert read_declarations(container).crops == {0: CROP}
    (segment,) = decode_segments(str(path), **DECODE)
    assert segment.frames.shape[1:3] == (30, 40)
    assert segment.frames[:, 1:-1, 1:-1].min() > 170


def test_what_the_codec_crops_is_not_stored(tmp_path):
    path = write_media(tmp_path / "clip.mp4", [np.full((50, 70, 3), 200, np.uint8)] * 50)
    (segment,) = decode_segments(str(path), **DECODE)  # coded as 80 x 64
    assert segment.frames.shape[1:3] == (48, 67)
    assert segment.frames.min() > 190


def test_borders_that_leave_nothing_crop_nothing():
    assert Crop(40, 24, 0, 0).window(64, 48) == (slice(0, 48), slice(0, 64))
    assert Crop(0, 0, 48, 1).window(64, 48) == (slice(0, 48), slice(0, 64))
    assert Crop(1, 2, 3, 4).window(64, 48) == (slice(3, 44), slice(1, 62))


def test_programs_and_crops_are_read_from_the_dump():
    text = """Input #0, mpegts, from '':
  Duration: 00:00:10.02
  Program 1
    Metadata:
      service_name    : Program 7
  Program 2 News
  Stream #0:0[0x100]: Video: h264
    Side data:
      Frame Cropping: 1/2/3/4
  Stream #0:3[0x101](und): Audio: aac
  Program 3
  Stream #0:3[0x101](und): Audio: aac
  No Program
  Stream #0:1[0x102]: Audio: mp2
"""
    found = parse_dump(text)
    assert found.programs == ({0, 3}, {3})
    assert found.crops == {0: Crop(1, 2, 3, 4)}


def write_changing(path: Path, *parts: tuple[int, tuple[int, int]]) -> Path:
    """Joins streams of other sizes: frames and (width, height) of each; a white square is in each
    picture's middle, a third of its height high."""
    data = b""
    start = 0.0
    for number, (num_frames, (width, height)) in enumerate(parts):
        frame = np.full((height, width, 3), 60, np.uint8)
        side = height // 3
        top, left = (height - side) // 2, (width - side) // 2
        frame[top : top + side, left : left + side] = 250
        part = write_media(
            path.with_suffix(f".{number}.ts"),
            [frame] * num_frames,
            codecs=("libx264", "aac"),
            options={"output_ts_offset": str(start), "muxdelay": "0"},
        )
        start += num_frames / 25
        data += part.read_bytes()
    path.write_bytes(data)
    return path


def square(frame):
    """Width and height of what is white."""
    rows, columns = np.nonzero(frame.mean(axis=2) > 150)
    return np.ptp(columns) + 1, np.ptp(rows) + 1


def test_a_size_that_changes_keeps_the_shape_of_each_picture(tmp_path):
    path = write_changing(tmp_path / "clip.ts", (200, (96, 54)), (175, (72, 96)), (125, (128, 72)))
    first, second, third, fourth = decode_segments(str(path), **DECODE)
    assert first.frames.shape[1:3] == (48, 85)
    # Three seconds of the second part have the first one's shape, four the second one's.
    assert second.frames.shape[1:3] == (48, 85)
    assert third.frames.shape[1:3] == (64, 48)
    assert fourth.frames.shape[1:3] == (48, 85)
    for segment in (first, second, third, fourth):
        for frame in segment.frames:
            width, height = square(frame)
            assert abs(width - height) <= 2
            assert height >= 8


def test_a_picture_is_fitted_into_the_middle_of_a_page():
    page = fitted(np.full((30, 40, 3), 200, np.uint8), 36, 64)
    assert page.shape == (36, 64, 3)
    assert page[:, 8:56].min() == 200
    assert page[:, :8].max() == page[:, 56:].max() == 0
    tall = fitted(np.full((100, 1, 3), 9, np.uint8), 10, 10)
    assert tall[:, 4:5].min() == 9
    assert tall[:, 5:].max() == 0


def test_most_pictures_decide_the_shape():
    wide, tall = np.zeros((3, 4, 3), np.uint8), np.zeros((4, 3, 3), np.uint8)
    assert {p.shape for p in same_shape([wide, tall, tall])} == {tall.shape}
    assert {p.shape for p in same_shape([wide, tall])} == {wide.shape}


def test_a_pixel_aspect_that_the_codec_changes_is_followed(tmp_path):
    def part(name, aspect, start):
        return write_media(
            tmp_path / name,
            [np.full((48, 64, 3), 99, np.uint8)] * 125,
            codecs=("libx264", "aac"),
            pixel_aspect=aspect,
            options={"output_ts_offset": str(start), "muxdelay": "0"},
        )

    path = tmp_path / "clip.ts"
    path.write_bytes(part("a.ts", 1, 0).read_bytes() + part("b.ts", 2, 5).read_bytes())
    first, second = decode_segments(str(path), **DECODE)
    assert first.frames.shape[1:3] == (48, 64)
    assert second.frames.shape[1:3] == (48, 128)


def test_a_decoded_frame_lives_no_longer_than_its_picture_takes(tmp_path):
    """Frames that wait for the garbage collector hold 14 MB a segment at 360p, and 100 at 1080p."""
    path = write_numbered(tmp_path / "clip.mp4", 100)
    gc.collect()
    gc.disable()
    try:
        for number, segment in enumerate(decode_segments(str(path), **DECODE)):
            alive = sum(type(kept) is VideoFrame for kept in gc.get_objects())
            assert alive <= 4, f"segment {number} of {len(segment.frames)} frames"
    finally:
        gc.enable()

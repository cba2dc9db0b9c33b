"""Frames are stored raw, as JPEGs or as H.264, and come back the same whoever reads which part."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from pipelines.config.ingest import ClipsSettings, IngestSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.frame_encoding import decode_frames, encode_frames, encoding_of, shard_schema
from pipelines.dataset.row_tensors import read_frames
from pipelines.dataset.schema import CLIPS
from pipelines.dataset.shards import read_groups
from pipelines.errors import UserError
from pipelines.ingest.summary import _dataset_id
from tests.helpers.clip_datasets import write_dataset

ENCODED = ("jpeg", "h264")
QUALITY = {"raw": 0, "jpeg": 90, "h264": 20}
SHAPES = [(11, 32, 48), (9, 31, 45), (1, 1, 1), (5, 6, 8), (3, 2, 300)]


def scene(shape):
    """A smooth picture that moves, as compressible as a film."""
    ticks, rows, columns = np.ogrid[: shape[0], : shape[1], : shape[2]]
    waves = [np.sin((rows * (5 + i) + 4 * columns + 9 * ticks) / 60) * 90 + 128 for i in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


def noise(shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)


def psnr(one, other):
    return 10 * np.log10(255**2 / np.square(one.astype(float) - other).mean())


@pytest.mark.parametrize("encoding", ["raw", *ENCODED])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("picture", [scene, noise])
def test_any_part_is_what_decoding_all_and_slicing_gives(encoding, shape, picture):
    stored = encode_frames(picture(shape), encoding, QUALITY[encoding], 8.0)
    whole = decode_frames(stored, encoding, shape)
    assert whole.shape == (*shape, 3)
    for first in range(shape[0] + 1):
        for stop in range(first, shape[0] + 1):
            part = decode_frames(stored, encoding, shape, slice(first, stop))
            assert np.array_equal(part, whole[first:stop])


@pytest.mark.parametrize(("encoding", "better", "worse"), [("jpeg", 95, 30), ("h264", 12, 45)])
def test_encoded_frames_resemble_what_was_stored_and_quality_has_its_price(encoding, better, worse):
    frames = scene((12, 96, 128))
    qualities = (better, QUALITY[encoding], worse)
    stored = [encode_frames(frames, encoding, quality, 8.0) for quality in qualities]
    sizes = [each.size for each in stored]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] < frames.nbytes / 5
    decoded = [decode_frames(each, encoding, (12, 96, 128)) for each in stored]
    likeness = [psnr(frames, found) for found in decoded]
    assert likeness == sorted(likeness, reverse=True)
    assert likeness[1] > 35


@pytest.mark.parametrize("rate", [0.1, 1.0, 8.0, 12.5, 24000 / 1001, 30.0, 240.0])
def test_h264_takes_any_frame_rate(rate):
    frames = scene((6, 32, 48))
    found = decode_frames(encode_frames(frames, "h264", 20, rate), "h264", (6, 32, 48))
    assert psnr(frames, found) > 35


@pytest.mark.parametrize("encoding", ENCODED)
def test_another_size_than_the_rows_is_refused(encoding):
    stored = encode_frames(scene((8, 64, 48)), encoding, QUALITY[encoding], 8.0)
    for shape in [(8, 48, 64), (8, 64, 64), (8, 16, 16), (8, 512, 512), (7, 64, 48), (9, 64, 48)]:
        with pytest.raises(ValueError, match=r"not|has"):
            decode_frames(stored, encoding, shape)
    for shape in [(0, 64, 48), (8, 0, 48), (8, 100_000, 100_000), (-1, 64, 48), (10**9, 64, 48)]:
        with pytest.raises(ValueError, match=r"no frames have shape|too few"):
            decode_frames(stored, encoding, shape)


@pytest.mark.parametrize("encoding", ENCODED)
def test_damaged_bytes_are_an_error_and_nothing_worse(encoding):
    shape = (8, 48, 64)
    stored = bytes(encode_frames(scene(shape), encoding, QUALITY[encoding], 8.0))
    whole = decode_frames(stored, encoding, shape)
    generator = np.random.default_rng(1)
    for damaged in (b"", stored[:7], stored[:-1], stored + b"x", stored[:32] + bytes(500)):
        with pytest.raises(ValueError, match="bytes"):
            decode_frames(damaged, encoding, shape)
    num_errors = 0
    for _ in range(300):
        damaged = bytearray(stored)
        for position in generator.integers(32, len(stored), 8).tolist():
            damaged[position] = int(generator.integers(256))
        try:
            assert decode_frames(bytes(damaged), encoding, shape).shape == whole.shape
        except ValueError:
            num_errors += 1
    assert num_errors > 50


def test_a_jpeg_of_many_pixels_is_refused_before_it_is_decoded():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    jpeg = bytearray(file.getvalue())
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = b"\xff\xff\xff\xff"
    stored = np.array([len(jpeg)], "<u4").tobytes() + bytes(jpeg)
    with pytest.raises(ValueError, match="frame 0 is 65535 x 65535, not 8 x 8"):
        decode_frames(stored, "jpeg", (1, 8, 8))


def test_raw_bytes_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="144 bytes are no raw frames of shape 2 x 4 x 7"):
        decode_frames(bytes(144), "raw", (2, 4, 7))
    with pytest.raises(ValueError, match=r"encoding \(av1\) is unknown"):
        decode_frames(bytes(144), "av1", (2, 4, 6))


@pytest.mark.parametrize("encoding", ENCODED)
def test_a_dataset_says_its_encoding_and_gives_its_frames(tmp_path, encoding):
    made = {"num_frames": 10, "size": lambda _: (32, 48), "frames": lambda _, n, s: scene((n, *s))}
    has_video = {"has_video": lambda clip: clip != 1}
    folder = write_dataset(tmp_path / "clips", 6, encoding=encoding, **made, **has_video)
    dataset = ClipDataset.open(folder)
    assert dataset.frames_encoding == encoding
    frames = [clip.frames for clip in dataset.clips(range(6))]
    assert [array is None for array in frames] == [number == 1 for number in range(6)]
    assert psnr(scene((10, 32, 48)), frames[0]) > 35
    (shard, *_) = dataset.shards
    assert encoding_of(pq.read_schema(shard)) == encoding
    tables = read_groups(shard, ["frames", "num_frames", "height", "width"])
    (first, *_) = [read_frames(table, 0, shard=shard) for table in tables]
    assert np.array_equal(first, frames[0])


def test_a_dataset_from_before_encodings_is_raw(tmp_path):
    folder = write_dataset(tmp_path / "clips", 3)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["settings"]["clips"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    dataset = ClipDataset.open(folder)
    assert dataset.frames_encoding == "raw"
    assert next(dataset.clips([0])).frames is not None
    assert b"xkd.frames_encoding" not in pq.read_schema(dataset.shards[0]).metadata


def test_frames_that_do_not_fit_their_row_name_the_shard(tmp_path):
    folder = write_dataset(tmp_path / "clips", 3, encoding="jpeg", size=lambda _: (32, 48))
    (shard,) = (folder / "clips").iterdir()
    table = pq.read_table(shard)
    column = table.schema.get_field_index("height")
    table = table.set_column(column, table.schema.field("height"), pa.array([48] * 3, pa.int32()))
    pq.write_table(table, shard)
    with pytest.raises(UserError, match=rf"shard \({shard}\): frames .* delete the shard and run"):
        list(ClipDataset.open(folder).clips([0]))


def test_each_encoding_and_quality_has_a_dataset_id_of_its_own():
    clips = CLIPS.empty_table()
    stored = [{}, {"encoding": "jpeg"}, {"encoding": "h264"}, {"encoding": "jpeg", "quality": 80}]
    settings = [IngestSettings(clips=each) for each in stored]
    assert len({_dataset_id(clips, each) for each in settings}) == len(stored)
    assert _dataset_id(clips, IngestSettings()) == _dataset_id(clips, settings[0])
    given = IngestSettings(clips={"encoding": "jpeg", "quality": 90})
    assert _dataset_id(clips, given) == _dataset_id(clips, settings[1])
    assert shard_schema(CLIPS, "raw") is CLIPS


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ({"quality": 90}, r"quality \(90\) must come with encoding=jpeg or encoding=h264"),
        ({"encoding": "jpeg", "quality": 100}, r"quality \(100\) of jpeg must be 1 to 95"),
        ({"encoding": "h264", "quality": 52}, r"quality \(52\) of h264 must be 0 to 51"),
        ({"encoding": "h264", "quality": -1}, r"quality \(-1\) of h264 must be 0 to 51"),
        ({"encoding": "av1"}, "Input should be 'raw', 'jpeg' or 'h264'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(clips, message):
    with pytest.raises(ValidationError, match=message):
        ClipsSettings(**clips)

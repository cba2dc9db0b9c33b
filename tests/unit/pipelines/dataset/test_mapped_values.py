import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.mapped_values import mapped_column
from tests.helpers.clip_datasets import write_dataset

VALUES = [b"abc", None, b"defgh" * 1000, b"i", None, b"j" * 77, b"kl"]
SIZES = [len(value or b"") for value in VALUES]
GROUPS = ((0, 3), (3, 6), (6, 7))


def write(path, values=VALUES, *, kind=None, **settings):
    table = pa.table(
        {"other": range(len(values)), "value": pa.array(values, kind or "large_binary")}
    )
    options = {"compression": "none", "use_dictionary": False} | settings
    pq.write_table(table, path, row_group_size=3, **options)
    return str(path)


def columns(path, sizes=SIZES):
    with pq.ParquetFile(path) as file:
        return [
            mapped_column(path, file, group, "value", sizes[first:stop])
            for group, (first, stop) in enumerate(GROUPS)
        ]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("checksum", [False, True])
def test_values_of_each_row_group_are_found(tmp_path, version, checksum):
    path = write(tmp_path / "a.parquet", data_page_version=version, write_page_checksum=checksum)
    found = columns(path)
    assert [value for column in found for value in column.to_pylist()] == VALUES
    assert {column.type for column in found} == {pa.large_binary()}


def test_values_share_the_memory_of_the_file(tmp_path):
    path = write(tmp_path / "a.parquet", [b"a" * 10_000_000] * 3)
    before = pa.total_allocated_bytes()
    with pq.ParquetFile(path, memory_map=True) as file:
        column = mapped_column(path, file, 0, "value", [10_000_000] * 3)
    assert pa.total_allocated_bytes() - before < 10_000
    assert column.to_pylist() == [b"a" * 10_000_000] * 3  # the file is closed, its memory is not


@pytest.mark.parametrize(
    "settings",
    [
        {"compression": "zstd"},
        {"use_dictionary": True},
        {"data_page_size": 1, "write_batch_size": 1},
        {"column_encoding": {"value": "DELTA_LENGTH_BYTE_ARRAY"}},
        {"column_encoding": {"value": "DELTA_BYTE_ARRAY"}},
    ],
)
def test_another_form_is_left_to_the_library(tmp_path, settings):
    path = write(tmp_path / "a.parquet", **settings)
    assert columns(path)[:2] == [None, None]


@pytest.mark.parametrize("changed", [0, 2, 5])
@pytest.mark.parametrize("by", [-1, 1, 1_000_000])
def test_sizes_that_the_file_does_not_confirm_give_nothing(tmp_path, changed, by):
    path = write(tmp_path / "a.parquet")
    sizes = [size + by * (number == changed) for number, size in enumerate(SIZES)]
    assert columns(path, sizes)[changed // 3] is None


def test_a_value_that_is_there_against_the_sizes_gives_nothing(tmp_path):
    path = write(tmp_path / "a.parquet")
    sizes = [size * (number != 2) for number, size in enumerate(SIZES)]
    assert columns(path, sizes)[0] is None
    assert columns(path, [0] * 7) == [None] * 3
    with pq.ParquetFile(path) as file:
        assert mapped_column(path, file, 0, "value", SIZES[:2]) is None


def test_a_file_that_is_cut_raises(tmp_path):
    path = write(tmp_path / "a.parquet")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes((tmp_path / "a.parquet").read_bytes()[:100])
    with pq.ParquetFile(path) as file, pytest.raises(OSError, match="out of bounds"):
        mapped_column(str(cut), file, 0, "value", SIZES[:3])


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_a_dataset_reads_the_same_with_and_without(tmp_path, monkeypatch, encoding):
    write_dataset(
        tmp_path,
        11,
        encoding=encoding,
        size=lambda clip: (6 + clip % 2, 8),
        has_audio=lambda clip: clip % 4 != 1,
        has_video=lambda clip: clip % 5 != 2,
    )
    dataset = ClipDataset.open(tmp_path)
    mapped, sources = list(dataset.clips(range(11))), []
    monkeypatch.setattr(
        "pipelines.dataset.clip_dataset.mapped_column",
        lambda *given: sources.append(given) and None,
    )
    read = list(dataset.clips(range(11)))
    assert sources
    for one, other in zip(mapped, read, strict=True):
        assert (one.clip_id, one.label) == (other.clip_id, other.label)
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.waveform, other.waveform)


def test_a_dataset_of_raw_clips_is_mapped(tmp_path):
    """Otherwise all of the above passes, and each feed is slower."""
    write_dataset(tmp_path, 3, num_frames=300, size=lambda _: (64, 64))
    dataset = ClipDataset.open(tmp_path)
    before = pa.total_allocated_bytes()
    group = dataset.read_group(0)
    assert group.frames(2).nbytes == 300 * 64 * 64 * 3
    assert pa.total_allocated_bytes() - before < 100_000

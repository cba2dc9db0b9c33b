import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import UserError
from pipelines.sources import list_sources


def touch(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def listed(folder, labels="auto"):
    found = list_sources(str(folder), labels)
    return {
        os.path.relpath(source.path, folder): (source.label, source.split)
        for source in found.sources
    }


def test_every_file_is_a_source_unless_its_name_says_otherwise(tmp_path):
    for name in ("a.mp4", "deep/er/b.xyz", "no_ending", "c.csv", "d.TXT", "e.jpg", ".hidden"):
        touch(tmp_path / name)
    found = list_sources(str(tmp_path), "none")
    names = [os.path.relpath(source.path, tmp_path) for source in found.sources]
    assert names == ["a.mp4", "deep/er/b.xyz", "no_ending"]
    assert found.ignored == {".csv": 1, ".jpg": 1, ".txt": 1, "hidden": 1}


def test_folders_name_labels_and_splits(tmp_path):
    for name in ("train/dog/a.mp4", "Validation/dog/b.mp4", "heldout/cat/c.mp4", "d.mp4"):
        touch(tmp_path / name)
    assert listed(tmp_path) == {
        "train/dog/a.mp4": ("dog", "train"),
        "Validation/dog/b.mp4": ("dog", "val"),
        "heldout/cat/c.mp4": ("cat", "test"),
        "d.mp4": (None, None),
    }


def test_one_folder_alone_is_no_label_unless_asked(tmp_path):
    touch(tmp_path / "clips/a.mp4")
    assert listed(tmp_path) == {"clips/a.mp4": (None, None)}
    assert listed(tmp_path, "folder") == {"clips/a.mp4": ("clips", None)}
    touch(tmp_path / "other/b.mp4")
    assert listed(tmp_path)["clips/a.mp4"] == ("clips", None)
    assert listed(tmp_path, "none")["clips/a.mp4"] == (None, None)


def test_a_split_folder_is_no_label(tmp_path):
    touch(tmp_path / "train/a.mp4")
    touch(tmp_path / "test/b.mp4")
    assert listed(tmp_path) == {"train/a.mp4": (None, "train"), "test/b.mp4": (None, "test")}


def test_links_are_followed_and_loops_end(tmp_path):
    touch(tmp_path / "videos/a.mp4")
    touch(tmp_path / "elsewhere/b.mp4")
    (tmp_path / "videos/again").symlink_to(tmp_path / "videos")
    (tmp_path / "videos/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "videos/broken.mp4").symlink_to(tmp_path / "nowhere.mp4")
    found = list_sources(str(tmp_path / "videos"), "none")
    sizes = {os.path.basename(source.path): source.byte_size for source in found.sources}
    assert sizes == {"a.mp4": 1, "b.mp4": 1, "broken.mp4": -1}


def test_pipes_and_sockets_are_no_sources(tmp_path):
    touch(tmp_path / "a.mp4")
    os.mkfifo(tmp_path / "b.mp4")
    assert list(listed(tmp_path)) == ["a.mp4"]


def test_names_that_are_no_text_get_one_that_is(tmp_path):
    touch(tmp_path / b"\xff.mp4".decode(errors="surrogateescape"))
    (source,) = list_sources(str(tmp_path), "none").sources
    assert source.uri.endswith("\\xff.mp4")
    assert os.path.exists(source.path)


def test_a_list_gives_labels_splits_and_groups(tmp_path):
    touch(tmp_path / "v/a.mp4")
    touch(tmp_path / "v/b, c.mp4")
    path = tmp_path / "list.csv"
    path.write_text(
        "\ufeffpath,label,split,group,note\n"
        "v/a.mp4,dog,train,g1,?\n"
        '"v/b, c.mp4",,valid,,\n'
        f"{tmp_path}/gone.mp4,cat,,,\n"
    )
    a, b, gone = sorted(list_sources(str(path), "auto").sources, key=lambda s: s.split or "zzz")
    assert (a.path, a.label, a.split, a.group) == (f"{tmp_path}/v/a.mp4", "dog", "train", "g1")
    assert (b.label, b.split, b.group) == (None, "val", None)
    assert (gone.byte_size, gone.label) == (-1, "cat")


def test_a_parquet_list_reads_the_same(tmp_path):
    touch(tmp_path / "a.mp4")
    table = pa.table({"path": ["a.mp4"], "label": [7], "extra": [[1, 2]]})
    pq.write_table(table, tmp_path / "list.parquet")
    (source,) = list_sources(str(tmp_path / "list.parquet"), "auto").sources
    assert (source.path, source.label, source.byte_size) == (f"{tmp_path}/a.mp4", "7", 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", "file,label\na.mp4,x\n", "must have a column path, but has file, label"),
        ("list.csv", "path\na.mp4\nb.mp4\n./a.mp4\n", r"row 3 repeats the path \./a.mp4"),
        ("list.csv", "path,label\n,x\n", "row 1 has no path"),
        ("list.csv", "path\n", "must hold media, but it is empty"),
        ("list.csv", "", "must have a column path"),
        ("list.parquet", "no parquet", "cannot be read"),
        ("list.csv", b"path\n\xff\xfe\n", "cannot be read"),
        ("list.tsv", "path\tlabel\n.\tx\n", r"row 1: \. must be a file"),
        ("list.txt", "a.mp4\n", r"must be a folder or a list that ends with \.csv"),
    ],
)
def test_a_wrong_list_is_refused_with_the_reason(tmp_path, name, content, message):
    touch(tmp_path / name, content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        list_sources(str(tmp_path / name), "auto")
    assert "\n" not in str(caught.value)


def test_inputs_without_media_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        list_sources(str(tmp_path / "nowhere"), "auto")
    with pytest.raises(UserError, match="must hold media, but it is empty"):
        list_sources(str(tmp_path), "auto")
    touch(tmp_path / "notes.txt")
    with pytest.raises(UserError, match=r"must hold media, but only 1 \.txt"):
        list_sources(str(tmp_path), "auto")

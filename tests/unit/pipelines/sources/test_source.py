import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import UserError
from pipelines.sources.listing import list_sources
from pipelines.sources.source import Source


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


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_hidden_folder_is_counted_once(tmp_path, prefix):
    for name in ("a.mp4", ".b.mp4", ".h/c.mp4", ".h/.d/e.mp4", "f/.g/h.mp4", "f/.g/i.mp4"):
        touch(tmp_path / name)
    found = list_sources(f"{prefix}{tmp_path}", "none")
    assert [os.path.basename(source.path) for source in found.sources] == ["a.mp4"]
    assert found.ignored == {"hidden": 3}


def test_folders_name_labels_and_splits(tmp_path):
    for name in ("train/dog/a.mp4", "Validation/dog/b.mp4", "heldout/cat/c.mp4", "d.mp4"):
        touch(tmp_path / name)
    assert listed(tmp_path) == {
        "train/dog/a.mp4": ("dog", "train"),
        "Validation/dog/b.mp4": ("dog", "val"),
        "heldout/cat/c.mp4": ("cat", "test"),
        "d.mp4": (None, None),
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train/deep/dog/a.mp4", {"train/deep/dog/a.mp4": ("dog", "train")}),
        ("dog/train/a.mp4", {"dog/train/a.mp4": ("dog", "train")}),
        ("training/dog/a.mp4", {"training/dog/a.mp4": ("dog", "train")}),
        ("corpus/train/dog/a.mp4", {"corpus/train/dog/a.mp4": ("dog", "train")}),
    ],
)
def test_splits_lie_above_or_below_the_labels(tmp_path, name, expected):
    other = name.replace("training", "eval").replace("train", "test").replace("dog", "cat")
    for path in (name, other):
        touch(tmp_path / path)
    found = listed(tmp_path)
    assert found[name] == expected[name]
    assert found[other] == ("cat", "test")


@pytest.mark.parametrize(
    "names",
    [
        ("car/a.mp4", "test/b.mp4", "bus/c.mp4"),
        ("archive/2021/test/a.mp4", "archive/2022/b.mp4", "other/c.mp4"),
        ("train/dog/a.mp4", "dog/test/b.mp4"),
        ("Kyoto/train/a.mp4", "Kyoto/bus/b.mp4"),
        ("corpus/train/dog/a.mp4", "corpus/train/b.mp4", "corpus/cat/c.mp4"),
    ],
)
def test_a_folder_called_test_among_others_is_a_folder_like_any_other(tmp_path, names):
    for name in names:
        touch(tmp_path / name)
    found = list_sources(str(tmp_path), "auto")
    assert {source.split for source in found.sources} == {None}
    assert all(source.label == Path(source.path).parent.name for source in found.sources)
    assert "not taken as splits" in found.notes[0]


def test_the_notes_say_which_folders_were_taken_as_splits(tmp_path):
    for name in ("training/dog/a.mp4", "training/cat/b.mp4", "eval/dog/c.mp4", "d.mp4"):
        touch(tmp_path / name)
    assert list_sources(str(tmp_path), "auto").notes == [
        "splits are taken from folders: eval as test (1 file), training as train (2 files)",
        "1 file outside these folders without a split, used for training",
    ]


def test_the_notes_of_a_list_name_odd_splits_and_labels(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text('path,labels,split\na.mp4,"dog,cat",training\nb.mp4,dog|cat,fold1\n')
    found = list_sources(str(path), "auto")
    assert [source.split for source in found.sources] == ["train", "fold1"]
    splits, others, commas = found.notes
    assert splits == "splits are taken from the list: fold1 (1 row), train (1 row)"
    assert others.startswith("splits fold1 are neither train, val nor test")
    assert commas.startswith("labels with a comma (dog,cat) are one label, in 1 row")


def test_pipes_sockets_and_devices_are_counted_and_not_opened(tmp_path):
    touch(tmp_path / "a.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "null.mp4").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.mp4"))
        found = list_sources(str(tmp_path), "none")
    assert [os.path.basename(source.path) for source in found.sources] == ["a.mp4"]
    assert found.ignored == {"device": 1, "pipe": 1, "socket": 1}


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
    (tmp_path / "videos/itself.mp4").symlink_to(tmp_path / "videos/itself.mp4")
    found = list_sources(str(tmp_path / "videos"), "none")
    assert sorted(os.path.basename(source.path) for source in found.sources) == [
        "a.mp4",
        "b.mp4",
        "broken.mp4",
        "itself.mp4",
    ]


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
    assert (gone.path, gone.label) == (f"{tmp_path}/gone.mp4", "cat")


LABELS = ["bird", "dog"]


def text_list(path):
    path.write_text("path,labels,split,start,end\na.mp4,dog|bird|dog,valid,1.5,11.5\n")


def json_list(path):
    path.write_text(
        '{"path": "a.mp4", "labels": ["dog", "bird"], "split": "valid", "start": 1.5, "end": 11.5}'
        "\n\n"
    )


def parquet_list(path):
    row = {"path": "a.mp4", "labels": LABELS, "split": "val", "start": 1.5, "end": 11.5, "x": [1]}
    pq.write_table(pa.Table.from_pylist([row]), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.csv", text_list), ("a.jsonl", json_list), ("a.parquet", parquet_list)],
)
def test_lists_of_every_kind_say_the_same(tmp_path, name, write):
    write(tmp_path / name)
    (source,) = list_sources(str(tmp_path / name), "auto").sources
    assert source == Source(
        f"{tmp_path}/a.mp4",
        f"{tmp_path}/a.mp4",
        None,
        "val",
        None,
        labels=("bird", "dog"),
        start_seconds=1.5,
        end_seconds=11.5,
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", 'path,label\n" b.mp4",x\n c.mp4,x\nd.mp4 ,x\n', [" b.mp4", "c.mp4", "d.mp4"]),
        ("a.jsonl", '{"path": " b.mp4"}\n{"path": " c.mp4"}\n', [" b.mp4", " c.mp4"]),
    ],
)
def test_blanks_of_a_path_are_kept_where_they_are_meant(tmp_path, name, content, expected):
    for file in (" b.mp4", "b.mp4", "c.mp4", "d.mp4"):
        touch(tmp_path / file)
    (tmp_path / name).write_text(content)
    sources = list_sources(str(tmp_path / name), "auto").sources
    assert [os.path.relpath(source.path, tmp_path) for source in sources] == expected


def test_cells_that_are_no_number_and_nothing_are_empty(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"path": "a", "label": NaN, "group": NaN, "split": NaN}\n'
        '{"path": "b", "labels": NaN}\n{"path": "c", "labels": ["x", NaN, null]}\n'
    )
    a, b, c = list_sources(str(tmp_path / "a.jsonl"), "auto").sources
    assert (a.label, a.group, a.split, b.labels, c.labels) == (None, None, None, (), ("x",))


def test_bytes_of_a_list_are_text(tmp_path):
    row = {"path": b"\xff.mp4", "label": b"dog", "labels": [b"dog"]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (source,) = list_sources(str(tmp_path / "a.parquet"), "auto").sources
    assert (os.path.basename(source.uri), source.label, source.labels) == (
        "\\xff.mp4",
        "dog",
        ("dog",),
    )


def test_one_label_of_a_list_of_labels_is_the_label(tmp_path):
    (tmp_path / "a.csv").write_text("path,labels\na.mp4,dog\n")
    (source,) = list_sources(str(tmp_path / "a.csv"), "auto").sources
    assert (source.label, source.labels) == ("dog", ("dog",))


def test_a_list_may_name_uris_and_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        b"path\ns3://bucket/some key.mp4\nhttps://host/a.mp4?x=1\nfile:///tmp/a%20b.mp4\n\xff.mp4\n"
    )
    sources = list_sources(str(tmp_path / "a.csv"), "auto").sources
    assert {source.uri for source in sources} == {
        "s3://bucket/some key.mp4",
        "https://host/a.mp4?x=1",
        "/tmp/a b.mp4",
        f"{tmp_path}/\\xff.mp4",
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", "file,label\na.mp4,x\n", "must have a column path, but has file, label"),
        ("list.csv", "path\na.mp4\nb.mp4\n./a.mp4\n", r"repeats the path /.*/a\.mp4"),
        ("list.csv", "path,label\n,x\n", "row 1 has no path"),
        ("list.csv", "path,label\n  ,x\n", "row 1: path is blank"),
        ("list.jsonl", '{"path": "a"}\n{"path": {"a": 1}}\n', r"row 2: path \(.*\) must be text"),
        ("list.jsonl", '{"path": 3}\n', r"row 1: path \(3\) must be text"),
        ("list.jsonl", '{"path": "a", "label": ["x"]}\n', r"row 1: label \(\['x'\]\) must be text"),
        ("list.jsonl", '{"path": "a", "start": true}\n', r"row 1: start \(True\) must be a number"),
        ("list.csv", "path,label,path\na,x,b\n", "has the column path more than once"),
        ("list.jsonl", '{"path": "a", "path": "b"}\n', "has the column path more than once"),
        ("list.csv", "path\n", "must hold media, but it is empty"),
        ("list.csv", "", "must have a column path"),
        ("list.parquet", "no parquet", "cannot be read"),
        ("list.csv", "path\na.mp4\n".encode("utf-16"), "it is UTF-16, but must be UTF-8"),
        ("list.jsonl", '{"path": "a"}\n[1]\n', r"each line must be an object, but one is \[1\]"),
        ("list.jsonl", '{"path": "a"', "cannot be read"),
        ("list.tsv", "path\tstart\na\tsoon\n", r"row 1: start \(soon\) must be a number"),
        (
            "list.csv",
            "path,split,group\na,train,v1\nb,,v1\nc,test,v2\nd,heldout,v1\n",
            r"row 4: group \(v1\) must be in one split, but is in train and test",
        ),
        ("list.jsonl", '{"path": "a", "start": [1]}\n', r"row 1: start \(\[1\]\) must be a num"),
        ("list.csv", "path,start\na,1\nb,nan\n", r"row 2: start \(nan\) must be a number"),
        ("list.csv", "path,end\na,inf\n", r"row 1: end \(inf\) must be a number of seconds, 0"),
        ("list.csv", "path,end\na,-5\n", r"row 1: end \(-5\) must be a number of seconds, 0"),
        ("list.csv", "path,start,end\na,8,4\n", r"row 1: start \(8\) must be less than end \(4\)"),
        ("list.jsonl", '{"path": "a", "labels": 3}\n', r"labels \(3\) must be a list"),
        ("list.txt", "a.mp4\n", r"must be a folder or a list that ends with \.csv"),
    ],
)
def test_a_wrong_list_is_refused_with_the_reason(tmp_path, name, content, message):
    touch(tmp_path / name, content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        list_sources(str(tmp_path / name), "auto")
    assert "\n" not in str(caught.value)


def test_a_table_with_a_column_twice_is_refused(tmp_path):
    table = pa.table([["a"], ["x"], ["b"]], ["path", "label", "path"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has the column path more than once"):
        list_sources(str(tmp_path / "a.parquet"), "auto")


def test_inputs_without_media_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        list_sources(str(tmp_path / "nowhere"), "auto")
    with pytest.raises(UserError, match="must hold media, but it is empty"):
        list_sources(str(tmp_path), "auto")
    touch(tmp_path / "notes.txt")
    with pytest.raises(UserError, match=r"must hold media, but only 1 \.txt"):
        list_sources(str(tmp_path), "auto")

"""Readers that turn the official lists of published datasets into sources with labels and splits.

Each dataset has one function from its folder (the unpacked archives, in any arrangement of
subfolders) to rows. Files are found by name. A listed file that is missing is also a source and
ends in the rejects, which shows how complete the dataset is. An unlisted file is counted as
ignored.

| dataset | lists | splits | group |
|---|---|---|---|
| UCF101 | trainlist01.txt, testlist01.txt | three folds | the video of the clip |
| HMDB51 | CLASS_test_split1.txt | three folds | |
| Kinetics-400, Kinetics-Sound | train.csv, val.csv, test.csv | train, val, test | |
| AudioSet | balanced_train_segments.csv, unbalanced..., eval_segments.csv | train, test | |
| VGGSound | vggsound.csv | train, test | |
| ESC-50 | meta/esc50.csv | five folds; one is the test split | the recording |
| FSD50K | dev.csv, eval.csv | train, val, test | |

AudioSet and FSD50K have several labels per source.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TextIO

from pipelines.errors import UserError
from pipelines.paths import is_uri
from pipelines.redaction import one_line
from pipelines.sources.folders import NOT_MEDIA_SUFFIXES, walk_files
from pipelines.sources.source import Source, SourceList, check_once, text_of, unique_labels

KINETICS_SOUND_CLASSES = frozenset(
    {
        "blowing nose",
        "blowing out candles",
        "bowling",
        "chopping wood",
        "dribbling basketball",
        "laughing",
        "mowing lawn",
        "playing accordion",
        "playing bagpipes",
        "playing bass guitar",
        "playing clarinet",
        "playing drums",
        "playing guitar",
        "playing harmonica",
        "playing keyboard",
        "playing organ",
        "playing piano",
        "playing saxophone",
        "playing trombone",
        "playing trumpet",
        "playing violin",
        "playing xylophone",
        "ripping paper",
        "shoveling snow",
        "shuffling cards",
        "singing",
        "stomping grapes",
        "strumming guitar",
        "tap dancing",
        "tapping guitar",
        "tapping pen",
        "tickling",
    }
)
"""Classes of Kinetics-400 that can be both seen and heard."""
_YOUTUBE_ID = 11
_CUT_AT = re.compile(r"_(\d+(?:\.\d+)?)(?:_|$)")
"""The start time that follows the video ID in the name of a trimmed file."""
_LIST_SUFFIXES = (".txt", ".csv")
_SOUND_DATASETS = frozenset({"esc50", "fsd50k"})
_SOUND_SUFFIXES = frozenset(
    {".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma"}
)
SAME_NAME = "of the name of another"
"""Reason for ignoring a file that differs from a used one only in extension or folder."""


@dataclass(frozen=True)
class Row:
    """A line of an official list."""

    stem: str
    """The file name without folder and extension."""
    labels: tuple[str, ...]
    split: str
    group: str | None = None
    start_seconds: float | None = None
    """Start of the listed segment in an untrimmed file, in seconds."""
    end_seconds: float | None = None


@dataclass
class Folder:
    """The files in the folder of a dataset."""

    root: str
    media: dict[str, str] = field(default_factory=dict)
    """Paths of media by name without extension."""
    lists: dict[str, str] = field(default_factory=dict)
    """Paths of text files by name."""
    special_files: Counter[str] = field(default_factory=Counter)
    """Pipes, sockets and devices."""
    num_same_name: int = 0
    """Number of media left out because another file of the same name is used."""

    def rows(self, *names: str) -> Iterator[list[str]]:
        """Yields the rows of cells of the first list found under one of the names.

        Raises:
            UserError: If no list is found, or it cannot be read.
        """
        name = next((name for name in names if name in self.lists), None)
        if name is None:
            raise UserError(f"input ({self.root}) must hold {names[0]}, but it does not")
        with self._opened(name) as lines:
            yield from csv.reader(lines, skipinitialspace=True)

    def lines(self, name: str) -> Iterator[str]:
        """Yields the nonempty lines of an existing list.

        Raises:
            UserError: If it cannot be read.
        """
        with self._opened(name) as lines:
            yield from filter(str.strip, lines)

    @contextmanager
    def _opened(self, name: str) -> Iterator[TextIO]:
        try:
            with open(self.lists[name], newline="", encoding="utf-8-sig") as lines:
                yield lines
        except (OSError, UnicodeError, csv.Error) as error:
            raise UserError(
                f"list ({self.lists[name]}) cannot be read: {one_line(error)}"
            ) from error

    def table(self, *names: str) -> Iterator[dict[str, str]]:
        """Yields the rows of a list whose first line names the columns."""
        rows = self.rows(*names)
        columns = next(rows, [])
        return (dict(zip(columns, row, strict=False)) for row in rows if row)


def list_published(input_path: str, dataset: str, fold: int) -> SourceList:
    """Finds the sources of a published dataset from its official lists.

    Raises:
        UserError: If the folder holds none of its media, or a list is missing or malformed.
    """
    folder, rows = _read(input_path, dataset, fold)
    found = _sources(folder, rows)
    if not any(row.stem in folder.media for row in rows):
        raise UserError(f"input ({input_path}) must hold media of {dataset}, but has none")
    return found


def read_rows(lists: str, dataset: str, fold: int) -> list[Row]:
    """Reads the official lists in a folder, which need not hold the media.

    Raises:
        UserError: If a list is missing or malformed.
    """
    return _read(lists, dataset, fold)[1]


def _read(input_path: str, dataset: str, fold: int) -> tuple[Folder, list[Row]]:
    if is_uri(input_path) or not os.path.isdir(input_path):
        raise UserError(f"input ({input_path}) must be a folder: it is to hold {dataset}")
    folder = read_folder(os.path.abspath(input_path), has_pictures=dataset not in _SOUND_DATASETS)
    read, num_folds = CORPORA[dataset]
    if fold > num_folds:
        raise UserError(f"fold ({fold}) must be at most {num_folds} for {dataset}")
    try:
        return folder, list(read(folder, fold))
    except UserError:  # also a ValueError, but its message is already clear
        raise
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"input ({input_path}) has a list that is not as {dataset} has it: "
            f"{type(error).__name__} {error}"
        ) from error


def read_folder(root: str, *, has_pictures: bool) -> Folder:
    """Walks a folder once and indexes its files by name.

    Several media may share a name, such as a video and its extracted audio. The index keeps the
    first file of the dataset's own kind.
    """
    folder = Folder(root)
    for path, _ in walk_files(root, folder.special_files):
        name = PurePosixPath(path)
        if name.name.startswith("."):
            continue
        if name.suffix.lower() in _LIST_SUFFIXES:
            folder.lists.setdefault(name.name, path)
        elif name.suffix.lower() not in NOT_MEDIA_SUFFIXES:
            other = folder.media.get(name.stem)
            folder.num_same_name += other is not None
            is_meant = _is_sound(path) != has_pictures
            if other is None or (is_meant and _is_sound(other) == has_pictures):
                folder.media[name.stem] = path
    return folder


def _is_sound(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in _SOUND_SUFFIXES


def ucf101(folder: Folder, fold: int) -> Iterator[Row]:
    """Reads UCF101 from lines such as `Archery/v_Archery_g08_c01.avi 1`."""
    for split in ("train", "test"):
        for cells in folder.rows(f"{split}list{fold:02}.txt"):
            if not cells:
                continue
            label, name = cells[0].split()[0].split("/")
            stem = PurePosixPath(name).stem
            # v_CLASS_gGROUP_cCLIP: the clips of a group come from one video.
            yield Row(stem, (label,), split, group=stem.rpartition("_c")[0].removeprefix("v_"))


def hmdb51(folder: Folder, fold: int) -> Iterator[Row]:
    """Reads HMDB51 from lines such as `some_name.avi 1` (1: train, 2: test, 0: neither)."""
    ending = f"_test_split{fold}.txt"
    lists = sorted(name for name in folder.lists if name.endswith(ending))
    if not lists:
        raise UserError(f"input ({folder.root}) must hold CLASS{ending}, but it does not")
    for name in lists:
        for line in folder.lines(name):
            file, number = line.rsplit(maxsplit=1)
            if split := {"1": "train", "2": "test"}.get(number):
                yield Row(PurePosixPath(file).stem, (name.removesuffix(ending),), split)


def kinetics400(folder: Folder, _fold: int) -> Iterator[Row]:
    """Reads Kinetics-400 from `label,youtube_id,time_start,time_end,split`; test may lack labels.

    Files are named `ID_000010_000020.mp4`, or `ID.mp4` if untrimmed.
    """
    names = {"train": ("train",), "val": ("val", "validate"), "test": ("test",)}
    there = {
        split: [
            f"{prefix}{part}.csv"
            for part in parts
            for prefix in ("", "kinetics_", "kinetics_400_", "kinetics400_")
            if f"{prefix}{part}.csv" in folder.lists
        ]
        for split, parts in names.items()
    }
    if not any(there.values()):
        raise UserError(f"input ({folder.root}) must hold train.csv or val.csv, but holds neither")
    for split, lists in there.items():
        for row in folder.table(lists[0]) if lists else ():
            label = row.get("label", "").strip()
            start, end = float(row["time_start"]), float(row["time_end"])
            name, labels = row["youtube_id"], (label,) if label else ()
            stem = f"{name}_{start:06.0f}_{end:06.0f}"
            if stem in folder.media or name not in folder.media:
                yield Row(stem, labels, split)
            else:
                yield Row(name, labels, split, start_seconds=start, end_seconds=end)


def kinetics_sound(folder: Folder, fold: int) -> Iterator[Row]:
    """Reads the rows of Kinetics-400 whose class is in Kinetics-Sound."""
    for row in kinetics400(folder, fold):
        if row.labels and row.labels[0] in KINETICS_SOUND_CLASSES:
            yield row


def audioset(folder: Folder, _fold: int) -> Iterator[Row]:
    """Reads AudioSet from lines such as `YTID, 30.000, 40.000, "/m/09x0r,/t/dd00088"`.

    Labels are the display names in class_labels_indices.csv if it exists. File names start with
    the video ID, as in `YTID`, `YYTID`, `YTID_30`, `YTID_30.000` or `YTID_30000_40000`.
    """
    names = {}
    if "class_labels_indices.csv" in folder.lists:
        names = {
            row["mid"]: row["display_name"] for row in folder.table("class_labels_indices.csv")
        }
    lists = {
        name: split
        for name, split in (
            ("balanced_train_segments.csv", "train"),
            ("unbalanced_train_segments.csv", "train"),
            ("eval_segments.csv", "test"),
        )
        if name in folder.lists
    }
    if not lists:
        raise UserError(f"input ({folder.root}) must hold eval_segments.csv, but it does not")
    files = _by_youtube_id(folder)
    for name, split in lists.items():
        for cells in folder.rows(name):
            if cells and not cells[0].startswith("#"):
                video, start, end, mids = cells
                labels = unique_labels(names.get(mid, mid) for mid in mids.split(","))
                yield _stretch(files, video, labels, split, float(start), float(end))


def vggsound(folder: Folder, _fold: int) -> Iterator[Row]:
    """Reads VGGSound from lines such as `YTID,30,"playing harp",train`. Segments last 10 s."""
    files = _by_youtube_id(folder)
    for cells in folder.rows("vggsound.csv"):
        if cells:
            video, start, label, split = cells
            if split not in ("train", "test"):
                raise ValueError(f"split {split}")
            yield _stretch(files, video, (label,), split, float(start), float(start) + 10.0)


def esc50(folder: Folder, fold: int) -> Iterator[Row]:
    """Reads ESC-50. One of its five folds is the test split."""
    for row in folder.table("esc50.csv"):
        split = "test" if int(row["fold"]) == fold else "train"
        stem = PurePosixPath(row["filename"]).stem
        yield Row(stem, (row["category"],), split, group=row["src_file"])


def fsd50k(folder: Folder, _fold: int) -> Iterator[Row]:
    """Reads FSD50K from `fname,labels,mids,split`. The evaluation list has no split column."""
    for row in folder.table("dev.csv"):
        if row["split"] not in ("train", "val"):
            raise ValueError(f"split {row['split']}")
        yield Row(row["fname"], unique_labels(row["labels"].split(",")), row["split"])
    for row in folder.table("eval.csv"):
        yield Row(row["fname"], unique_labels(row["labels"].split(",")), "test")


CORPORA: dict[str, tuple[Callable[[Folder, int], Iterator[Row]], int]] = {
    "ucf101": (ucf101, 3),
    "hmdb51": (hmdb51, 3),
    "kinetics400": (kinetics400, 1),
    "kinetics_sound": (kinetics_sound, 1),
    "audioset": (audioset, 1),
    "vggsound": (vggsound, 1),
    "esc50": (esc50, 5),
    "fsd50k": (fsd50k, 1),
}
"""The reader and the number of folds of each dataset."""


def _by_youtube_id(folder: Folder) -> dict[str, dict[str, str]]:
    """Maps each video ID to the stems of its files and their text after the ID.

    A stem may have a leading `Y`, which prevents a leading dash.
    """
    files: dict[str, dict[str, str]] = {}
    for stem in sorted(folder.media):
        begin = int(re.match(r"Y.{11}(_|$)", stem) is not None)
        end = begin + _YOUTUBE_ID
        files.setdefault(stem[begin:end], {})[stem] = stem[end:]
    return files


def _stretch(
    files: dict[str, dict[str, str]],
    video: str,
    labels: tuple[str, ...],
    split: str,
    start: float,
    end: float,
) -> Row:
    """Returns the row of a segment, with the file trimmed to it or else the whole video.

    If the name of a video's only file has other text than a start time after the ID, the file
    counts as trimmed.
    """
    there = files.get(video, {})
    for stem, rest in there.items():
        begins = _CUT_AT.match(rest)
        is_only = len(there) == 1 and rest and not begins
        if is_only or (begins and _is_second(float(begins[1]), start)):
            return Row(stem, labels, split)
    whole = next((stem for stem, rest in there.items() if not rest), video)
    return Row(whole, labels, split, start_seconds=start, end_seconds=end)


def _is_second(number: float, seconds: float) -> bool:
    """Returns whether a number in a name is a given time, in seconds or milliseconds."""
    return abs(number - seconds) < 1.0 or abs(number - 1000.0 * seconds) < 1.0


def _sources(folder: Folder, rows: list[Row]) -> SourceList:
    """Matches rows to files, or to the expected path of a missing file.

    A file is one source, so an untrimmed video serves the first of its listed segments. The other
    segments count as missing.
    """
    sources = []
    taken = set()
    for row in rows:
        path = folder.media.get(row.stem, f"{folder.root}/{row.stem}")
        if path in taken and row.start_seconds is not None:
            path = f"{folder.root}/{row.stem}_{row.start_seconds:06.0f}"
        taken.add(path)
        sources.append(
            Source(
                path,
                text_of(path),
                row.labels[0] if len(row.labels) == 1 else None,
                row.split,
                row.group,
                labels=row.labels,
                start_seconds=row.start_seconds,
                end_seconds=row.end_seconds,
            )
        )
    sources.sort(key=lambda source: source.uri)
    unlisted = len(folder.media) - len({row.stem for row in rows} & folder.media.keys())
    ignored = {"not listed": unlisted, SAME_NAME: folder.num_same_name, **folder.special_files}
    found = SourceList(folder.root, sources, {why: n for why, n in ignored.items() if n})
    check_once(found)
    return found

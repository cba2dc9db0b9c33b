"""Small published datasets in their official layouts, with enough clips of two classes to score."""

from collections.abc import Iterator
from pathlib import Path

from tests.helpers.encoders import write_media

CLASSES = ("playing drums", "singing")
NUM_CLIPS = 6
"""Of each class."""


def write_tree(dataset: str, folder: Path) -> list[Path]:
    """Writes lists and media; returns the files of media that are tested in the first fold."""
    files = []
    for path, has_picture, has_sound, number, is_test in _TREES[dataset](folder):
        if path.suffix == ".wav":
            write_media(path, seconds=1.5, picture=False, seed=number)
        else:
            made = write_media(
                path.with_suffix(".mkv"), seconds=1.5, picture=has_picture, sound=has_sound,
                seed=number,
            )  # fmt: skip
            made.replace(path)
        if is_test:
            files.append(path)
    return files


_Files = Iterator[tuple[Path, bool, bool, int, bool]]


def _clips() -> Iterator[tuple[str, int]]:
    return ((label, number) for number in range(NUM_CLIPS) for label in CLASSES)


def _write(file: Path, lines: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _ucf101(folder: Path) -> _Files:
    names = {f"{label.title().replace(' ', '')}": label for label in CLASSES}  # as PlayingDrums
    for fold in (1, 2, 3):
        for split in ("train", "test"):
            lines = [
                f"{name}/v_{name}_g{number:02}_c01.avi"
                for name in names
                for number in range(NUM_CLIPS)
                if (number % 3 == fold - 1) == (split == "test")
            ]
            _write(folder / f"ucfTrainTestlist/{split}list{fold:02}.txt", lines)
    for kind, name in enumerate(names):
        for number in range(NUM_CLIPS):
            path = folder / f"UCF-101/{name}/v_{name}_g{number:02}_c01.avi"
            yield path, True, True, 10 * kind + number, number % 3 == 0


def _hmdb51(folder: Path) -> _Files:
    for kind, label in enumerate(CLASSES):
        name = label.replace(" ", "_")
        for fold in (1, 2, 3):
            marks = [2 if n % 3 == fold - 1 else 1 for n in range(NUM_CLIPS)]
            lines = [f"{name}_{n}.avi {mark} " for n, mark in enumerate(marks)]
            _write(folder / f"testTrainMulti_7030_splits/{name}_test_split{fold}.txt", lines)
        for number in range(NUM_CLIPS):
            path = folder / f"hmdb51_org/{name}/{name}_{number}.avi"
            yield path, True, False, 10 * kind + number, number % 3 == 0


def _identity(label: str, number: int) -> str:
    return f"{label[:3]}{number:08}"


def _kinetics(folder: Path) -> _Files:
    for split, tested in (("train", False), ("val", True)):
        rows = [
            f"{label},{_identity(label, number)},0,10,{split}"
            for label, number in _clips()
            if (number % 3 == 0) == tested
        ]
        header = "label,youtube_id,time_start,time_end,split"
        _write(folder / f"annotations/{split}.csv", [header, *rows])
    for label, number in _clips():
        path = folder / f"videos/{_identity(label, number)}_000000_000010.mp4"
        yield path, True, True, 10 * CLASSES.index(label) + number, number % 3 == 0


def _audioset(folder: Path) -> _Files:
    for name, tested in (("balanced_train", False), ("eval", True)):
        rows = [
            f'{_identity(label, number)}, 0.000, 10.000, "/m/{label[:3]}{",/m/odd" * (number % 2)}"'
            for label, number in _clips()
            if (number % 3 == 0) == tested
        ]
        _write(folder / f"{name}_segments.csv", ["# Segments csv", "# YTID", "# header", *rows])
    for label, number in _clips():
        path = folder / f"clips/{_identity(label, number)}_000000.mp4"
        yield path, True, True, 10 * CLASSES.index(label) + number, number % 3 == 0


def _vggsound(folder: Path) -> _Files:
    rows = [
        f'{_identity(label, number)},0,"{label}",{"train" if number % 3 else "test"}'
        for label, number in _clips()
    ]
    _write(folder / "vggsound.csv", rows)
    for label, number in _clips():
        path = folder / f"video/{_identity(label, number)}_000000.mp4"
        yield path, True, True, 10 * CLASSES.index(label) + number, number % 3 == 0


def _esc50(folder: Path) -> _Files:
    rows = []
    for label, number in _clips():
        fold, kind = number % 5 + 1, CLASSES.index(label)
        name = f"{fold}-{kind}{number:03}-A-{kind}.wav"
        rows.append(f"{name},{fold},{kind},{label},False,{kind}{number:03},A")
        yield folder / "audio" / name, False, True, 10 * kind + number, fold == 1
    header = "filename,fold,target,category,esc10,src_file,take"
    _write(folder / "meta/esc50.csv", [header, *rows])


def _fsd50k(folder: Path) -> _Files:
    dev, held = ["fname,labels,mids,split"], ["fname,labels,mids"]
    for label, number in _clips():
        kind = CLASSES.index(label)
        name, labels = f"{kind}{number:04}", label + ",odd" * (number % 2)
        if number % 3:
            dev.append(f'{name},"{labels}",/m/x,{"val" if number == 1 else "train"}')
        else:
            held.append(f'{name},"{labels}",/m/x')
        part = "dev" if number % 3 else "eval"
        path = folder / f"FSD50K.{part}_audio/{name}.wav"
        yield path, False, True, 10 * kind + number, number % 3 == 0
    _write(folder / "FSD50K.ground_truth/dev.csv", dev)
    _write(folder / "FSD50K.ground_truth/eval.csv", held)


_TREES = {
    "ucf101": _ucf101,
    "hmdb51": _hmdb51,
    "kinetics400": _kinetics,
    "kinetics_sound": _kinetics,
    "audioset": _audioset,
    "vggsound": _vggsound,
    "esc50": _esc50,
    "fsd50k": _fsd50k,
}

"""Makes the list of labelled real media that the study of the objective trains and scores on.

    python tests/benchmarks/labelled_list.py FOLDER LIST.csv

FOLDER is `labelled` of the folder in `XKD_DATA_DIR`. Held out is what its README calls honest: a
fifth of the sentences of a speaker, a third of the sources of each kind of event and of the blocks
of ten neighbouring clips of drones, the fifth fold of ESC-10. Kinds of events with fewer than three
sources are trained on without a label.
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

MIN_SOURCES = 3

Row = tuple[str, str, str]


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def sentences(folder: Path) -> Iterator[Row]:
    """Clips of a talking face by the command that is spoken first."""
    rows = sorted(read(folder / "grid_s1/labels.csv"), key=lambda row: row["file"])
    for number, row in enumerate(rows):
        yield f"grid_s1/{row['file']}", f"says {row['command']}", _split(number, 5)


def events(folder: Path) -> Iterator[Row]:
    """Events that are seen and heard, by kind; a source is on one side."""
    rows = read(folder / "av_events/labels.csv")
    sources: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        sources[row["label"]].add(row["source_id"])
    position = {
        source: number for named in sources.values() for number, source in enumerate(sorted(named))
    }
    for row in rows:
        path = f"av_events/{row['file']}"
        if len(sources[row["label"]]) < MIN_SOURCES:
            yield path, "", "train"
        else:
            yield path, row["label"], _split(position[row["source_id"]], 3)


def sounds(folder: Path) -> Iterator[Row]:
    """Sounds without a picture."""
    for row in read(folder / "esc10/esc10.csv"):
        split = "test" if row["fold"] == "5" else "train"
        yield f"esc10/audio/{row['filename']}", row["category"], split


def drones(folder: Path) -> Iterator[Row]:
    """Pictures without a sound."""
    for row in read(folder / "drone_visible/labels.csv"):
        block = int(Path(row["file"]).stem.rpartition("_")[2]) // 10
        yield f"drone_visible/{row['file']}", f"flies {row['label']}", _split(block, 3)


def _split(number: int, one_in: int) -> str:
    return "test" if number % one_in == one_in - 1 else "train"


def main() -> None:
    """Writes the list; its paths are absolute."""
    folder, output = Path(sys.argv[1]).absolute(), Path(sys.argv[2])
    with output.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(["path", "label", "split"])
        for rows in (sentences, events, sounds, drones):
            for path, label, split in rows(folder):
                writer.writerow([folder / path, label, split])


if __name__ == "__main__":
    main()

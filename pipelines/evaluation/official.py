"""The official split of a published dataset: its folds, and how much of it a clip dataset holds.

Lists of several folds are matched to the sources of one clip dataset by file name, as an ingest of
the dataset does, so one ingest and one extraction serve all folds:

    source of the clips          fold 1    fold 2    fold 3
    v_Archery_g01_c01.avi        test      train     train
    v_Archery_g08_c02.avi        train     test      train
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.config.evaluate import EvaluateConfig, EvaluateSettings, OfficialSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.errors import UserError
from pipelines.evaluation.choice import Chosen, Fold, choose, split_scored_on
from pipelines.quantities import counted
from pipelines.sources.published_datasets import CORPORA, Row, read_rows

Array = NDArray[Any]


@dataclass(frozen=True)
class OfficialShare:
    """How much of an official split was there when it was scored."""

    dataset: str
    folds: tuple[int, ...]
    num_folds: int
    listed_train: int
    present_train: int
    listed_test: int
    """Sources that the lists name, of all folds together."""
    present_test: int

    @property
    def is_complete(self) -> bool:
        """Whether every fold was scored with every source."""
        return not self.marks()

    def marks(self) -> tuple[str, ...]:
        """Says in a few words what is missing, for everywhere that a figure is shown."""
        found = []
        if len(self.folds) < self.num_folds:
            of = ", ".join(map(str, self.folds)) or "none"
            found.append(f"fold {of} of {self.num_folds}")
        for side, present, listed in (
            ("test", self.present_test, self.listed_test),
            ("training", self.present_train, self.listed_train),
        ):
            if present < listed:
                found.append(f"{present:,} of {listed:,} {side} sources")
        return tuple(found)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "OfficialShare":
        """Reads what `asdict` wrote."""
        known = {one.name: values[one.name] for one in fields(cls)}
        return cls(**known | {"folds": tuple(known["folds"])})


def choose_clips(
    dataset: ClipDataset, settings: EvaluateSettings, official: OfficialSettings | None
) -> Chosen:
    """Chooses the clips of the dataset's own splits, or of official lists.

    Raises:
        UserError: As `check_official`.
    """
    if official is None or official.lists is None:
        return choose(dataset, settings, None)
    return _choose_listed(dataset, settings, official)


def check_official(config: EvaluateConfig, dataset: ClipDataset) -> list[str]:
    """Returns why the clips are not those of the published dataset, or a fold cannot be scored."""
    official = config.official
    if official is None:
        return []
    ingested = dataset.manifest["settings"].get("dataset")
    if official.lists is None and ingested != official.dataset:
        return [
            f"dataset ({config.dataset}) was ingested with dataset={ingested or 'null'}, but "
            f"official.dataset is {official.dataset}: ingest it with that, or give official.lists"
        ]
    try:
        choose_clips(dataset, config, official)
    except UserError as error:
        return [str(error)]
    return []


def official_share(
    dataset: ClipDataset, settings: EvaluateSettings, official: OfficialSettings
) -> OfficialShare:
    """Counts the sources of the official split that are there."""
    num_folds = CORPORA[official.dataset][1]
    if official.lists is None:
        fold = dataset.manifest["settings"].get("fold") or 1
        counts = _own_counts(dataset, settings)
        return OfficialShare(official.dataset, (fold,), num_folds, *counts)
    there = set(_stems(dataset))
    counts_by: Counter[tuple[str, bool]] = Counter()
    for rows in _lists(official).values():
        for row in rows:
            side = _side(row.split, settings)
            counts_by[side, False] += 1
            counts_by[side, True] += row.stem in there
    return OfficialShare(
        official.dataset,
        _folds(official),
        num_folds,
        *(counts_by[side, present] for side in ("train", "test") for present in (False, True)),
    )


def _own_counts(dataset: ClipDataset, settings: EvaluateSettings) -> tuple[int, int, int, int]:
    """Counts listed and present sources of training, then of the test split.

    A source that the lists name and that is missing is a reject.
    """
    scored = split_scored_on(dataset, settings)
    split_of = dict(zip(dataset.index.source.tolist(), dataset.index.split.tolist(), strict=True))
    present, rejected = Counter(split_of.values()), Counter(r["split"] for r in dataset.rejects())
    train = sum(present[name] for name in settings.train_splits)
    lost = sum(rejected[name] for name in settings.train_splits)
    test = present[scored] if scored else 0
    return train + lost, train, test + (rejected[scored] if scored else 0), test


def _side(split: str, settings: EvaluateSettings) -> str:
    if split in settings.train_splits:
        return "train"
    return "test" if split in settings.test_splits else ""


def _folds(official: OfficialSettings) -> tuple[int, ...]:
    return official.folds or tuple(range(1, CORPORA[official.dataset][1] + 1))


def _lists(official: OfficialSettings) -> dict[int, list[Row]]:
    assert official.lists is not None
    try:
        return {
            fold: read_rows(official.lists, official.dataset, fold) for fold in _folds(official)
        }
    except UserError as error:
        raise UserError(str(error).replace("input (", "official.lists (", 1)) from error


def _stems(dataset: ClipDataset) -> list[str]:
    """Returns the file name of the source of each row, without folder and extension."""
    stem_of = {source: PurePosixPath(source).stem for source in dataset.index.source.unique()}
    return [stem_of[source] for source in dataset.index.source.tolist()]


def _choose_listed(
    dataset: ClipDataset, settings: EvaluateSettings, official: OfficialSettings
) -> Chosen:
    listed = _lists(official)
    by_stem = {fold: {row.stem: row for row in rows} for fold, rows in listed.items()}
    row_of = {row.stem: row for rows in reversed(listed.values()) for row in rows}
    stems = _stems(dataset)
    rows = np.flatnonzero([stem in row_of for stem in stems])
    mine = [row_of[stems[row]] for row in rows]
    folds = []
    for fold, named in by_stem.items():
        sides = np.array([_side_in(named, row.stem, settings) for row in mine], dtype="U5")
        found = Fold(str(fold), sides == "train", sides == "test")
        _check_fold(found, official, dataset)
        folds.append(found)
    classes = tuple(sorted({label for row in row_of.values() for label in row.labels}))
    targets = _targets(mine, classes)
    numbers: dict[str, int] = {}
    origins = [numbers.setdefault(row.group or f"file {row.stem}", len(numbers)) for row in mine]
    return Chosen(
        rows=rows,
        clip_ids=tuple(str(name) for name in dataset.index.clip_id[rows]),
        classes=classes,
        targets=targets,
        is_train=folds[0].is_train,
        is_test=folds[0].is_test,
        origins=np.array(origins, np.int64),
        folds=tuple(folds),
    )


def _side_in(named: dict[str, Row], stem: str, settings: EvaluateSettings) -> str:
    return _side(named[stem].split, settings) if stem in named else ""


def _check_fold(fold: Fold, official: OfficialSettings, dataset: ClipDataset) -> None:
    for name, marks in (("training", fold.is_train), ("test", fold.is_test)):
        if not marks.any():
            raise UserError(
                f"official.lists ({official.lists}): fold {fold.name} of {official.dataset} has no "
                f"{name} clip in dataset ({dataset.path}); leave it out of official.folds, or "
                "ingest its files"
            )


def _targets(rows: Sequence[Row], classes: tuple[str, ...]) -> Array:
    number = {name: index for index, name in enumerate(classes)}
    targets = np.zeros((len(rows), len(classes)), dtype=bool)
    for clip, row in enumerate(rows):
        targets[clip, [number[label] for label in row.labels]] = True
    return targets


def share_values(share: OfficialShare | None) -> dict[str, Any] | None:
    """Returns the values for `scores.json`."""
    return None if share is None else asdict(share)


def share_text(share: OfficialShare) -> str:
    """Says how much of the official split was there, in one line."""
    missing = ", ".join(share.marks())
    folds = counted(len(share.folds), "fold")
    return f"{share.dataset}, {folds}: {missing or 'the whole official split'}"

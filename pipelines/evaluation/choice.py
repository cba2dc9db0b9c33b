"""Which clips of a dataset an evaluation uses, and why it can score none."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.config.evaluate import EvaluateSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.quantities import counted

Array = NDArray[Any]


@dataclass(frozen=True)
class Fold:
    """One of several ways in which the clips are divided."""

    name: str
    is_train: Array
    is_test: Array


@dataclass(frozen=True)
class Chosen:
    """The clips of an evaluation, in the order of the dataset."""

    rows: Array
    clip_ids: tuple[str, ...]
    classes: tuple[str, ...]
    targets: Array
    is_train: Array
    is_test: Array
    """With folds, of the first one."""
    origins: Array
    """Number of the video or recording that each clip comes from; see `origins`."""
    folds: tuple[Fold, ...] = ()


def split_scored_on(dataset: ClipDataset, settings: EvaluateSettings) -> str | None:
    """Returns the first of the test splits that the dataset has; None if it has none."""
    there = set(dataset.index.split.tolist())
    return next((name for name in settings.test_splits if name in there), None)


def unscorable(dataset: ClipDataset, settings: EvaluateSettings, modality: str) -> str:
    """Returns why a dataset gives no score for a modality; empty if it does."""
    index = dataset.index
    has_modality = index.has_audio if modality == "audio" else index.num_frames > 0

    def labels_in(*splits: str) -> set[str]:
        there = index.label[has_modality & np.isin(index.split, splits)]
        return {str(name) for name in there if name}

    classes = labels_in(*settings.train_splits)
    if len(classes) < 2:
        splits = ", ".join(settings.train_splits)
        there = counted(len(classes), "class", "classes")
        return f"split {splits} has labelled clips of {there}, and at least 2 are needed"
    scored_on = split_scored_on(dataset, settings)
    if scored_on is None:
        return f"there is no split {' or '.join(settings.test_splits)}"
    if not labels_in(scored_on):
        return f"split {scored_on}, the first that is there, has no labelled clip"
    return ""


def unretrievable(dataset: ClipDataset, settings: EvaluateSettings) -> str:
    """Returns why retrieval cannot be measured; empty if it can."""
    count = int(retrieval_clips(dataset, choose(dataset, settings, None), 2).sum())
    if count < 2:
        return f"{count} sources of the scored splits have picture and sound, and two are needed"
    return ""


def choose(dataset: ClipDataset, settings: EvaluateSettings, max_clips: int | None) -> Chosen:
    """Chooses the rows of the train splits and of the first test split of the dataset."""
    split = dataset.index.split
    labels = _all_labels(dataset)
    has_label = np.array([bool(names) for names in labels], dtype=bool)
    test_split = split_scored_on(dataset, settings)
    is_train, is_test = np.isin(split, settings.train_splits), split == test_split
    if max_clips is not None:
        is_train, is_test = (_spread(side & has_label, max_clips) for side in (is_train, is_test))
    rows = np.flatnonzero(is_train | is_test)
    classes = tuple(sorted({name for row in rows for name in labels[row]}))
    number = {name: index for index, name in enumerate(classes)}
    targets = np.zeros((len(rows), len(classes)), dtype=bool)
    for clip, row in enumerate(rows):
        targets[clip, [number[name] for name in labels[row]]] = True
    return Chosen(
        rows=rows,
        clip_ids=tuple(str(name) for name in dataset.index.clip_id[rows]),
        classes=classes,
        targets=targets,
        is_train=is_train[rows],
        is_test=is_test[rows],
        origins=origins(dataset, rows),
    )


def _spread(marks: Array, most: int) -> Array:
    """Keeps at most `most` marks, evenly spaced."""
    marked = np.flatnonzero(marks)
    kept = np.zeros_like(marks)
    kept[marked[np.linspace(0, len(marked) - 1, min(most, len(marked))).astype(int)]] = True
    return kept


def _all_labels(dataset: ClipDataset) -> list[tuple[str, ...]]:
    """Returns the labels of every row; the index has them if a clip has but one."""
    single = dataset.index.label.tolist()
    if all(single):
        return [(str(name),) for name in single]
    several = dataset.small_columns(["labels"])["labels"].to_pylist()
    return [
        tuple(dict.fromkeys(names or ([name] if name else [])))
        for name, names in zip(single, several, strict=True)
    ]


def origins(dataset: ClipDataset, rows: Array) -> Array:
    """Returns a number for each row that those share which come from one video or recording.

    That is the `group` of the dataset, such as the video of UCF101's clips, or else the source.
    """
    numbers = dataset.index.source_number[rows]
    if not len(rows):
        return numbers
    groups = dataset.small_columns(["group"])["group"].combine_chunks().dictionary_encode()
    codes = np.asarray(groups.indices.fill_null(-1))[rows]
    return np.where(codes < 0, numbers, -1 - codes)


def retrieval_clips(dataset: ClipDataset, chosen: Chosen, most: int) -> Array:
    """Marks held-out clips with both modalities, the first of each source, or training clips."""
    index = dataset.index
    both = (index.num_frames[chosen.rows] > 0) & index.has_audio[chosen.rows]
    candidates = np.flatnonzero(both & (chosen.is_test if chosen.is_test.any() else True))
    marked = np.zeros(len(chosen.rows), dtype=bool)
    _, firsts = np.unique(index.source_number[chosen.rows[candidates]], return_index=True)
    marked[candidates[np.sort(firsts)]] = True
    return _spread(marked, most)

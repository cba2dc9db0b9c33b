"""Frozen features of a clip dataset, trained and untrained, and head outputs for retrieval.

`extract` runs as a Ray task, on a GPU if there is one; of a large dataset, workers fill the cache
that it reads. The feature of a clip is the mean over its views, which are the crops of evenly
spaced windows; it is NaN for a modality that the clip does not have. With `per=source`, a clip here
is a whole source: its views are those of all its segments.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.config.base import Datasets
from pipelines.config.evaluate import EvaluateSettings, OfficialSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.joined import open_datasets
from pipelines.evaluation.choice import Chosen, Fold, choose
from pipelines.evaluation.gathered import Gathered
from pipelines.evaluation.networks import EncoderSource, Network
from pipelines.evaluation.notes import extraction_notes
from pipelines.evaluation.official import choose_clips
from pipelines.evaluation.shard_features import ShardEmbedder, load_on_device, shard_parts
from pipelines.progress import OnProgress, poster
from pipelines.storage import AnyPath

Array = NDArray[Any]
LARGE_FIELDS = ("matrices", "layers", "tokens", "views", "retrieval")
"""Fields of `Features` that grow with the width of encoders."""


@dataclass(frozen=True)
class Features:
    """Features of the clips of the splits in use, in the order of `clip_ids`."""

    clip_ids: tuple[str, ...]
    rows: Array
    """Row of each clip in the dataset."""
    classes: tuple[str, ...]
    labels: Array
    """Index into `classes`, -1 without a label or with several."""
    targets: Array
    """Booleans (clips, classes): the labels of each clip."""
    sources: Array
    """Number of the source of each clip; segments of one source share it, and sources of a group
    that the dataset names."""
    is_train: Array
    is_test: Array
    matrices: Mapping[str, Array]
    """`video/trained`, `audio/untrained`, ...: (clips, D), NaN where a modality is missing."""
    has: Mapping[str, Array]
    """Which clips have a modality, by `video` and `audio`."""
    retrieval_clips: Array
    """Indices of the clips in `retrieval`."""
    retrieval: Mapping[str, Array]
    """Outputs of the projection heads, (clips, K), keyed as `matrices`."""
    layers: Mapping[str, Array] = field(default_factory=dict)
    """Features of the last blocks, concatenated; empty unless `layers` is measured."""
    tokens: Mapping[str, Array] = field(default_factory=dict)
    """Patch tokens (clips, N, D) in float16; empty unless `attentive` is measured."""
    views: Mapping[str, Array] = field(default_factory=dict)
    """Features of single views, as `pooled/video/trained` and `layers/...`: (views, D). Empty
    unless scores are averaged."""
    view_owners: Mapping[str, Array] = field(default_factory=dict)
    """Clip of each view, by `video/trained`, ascending."""
    folds: tuple[Fold, ...] = ()
    """Official folds that are scored one by one; then `is_train` and `is_test` are the first's."""
    segment_rows: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    """Rows of the dataset of all segments, and in `segment_owners` the clip of each."""
    segment_owners: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    segment_has: Mapping[str, Array] = field(default_factory=dict)
    """Which segments have a modality."""
    notes: tuple[str, ...] = ()
    """Sentences about what is not as it was asked for."""

    @property
    def is_multilabel(self) -> bool:
        """Whether a clip has several labels."""
        return bool((self.targets.sum(axis=1) > 1).any())

    def of(self, modality: str) -> dict[str, Array]:
        """Returns the matrices of one modality by network."""
        prefix = f"{modality}/"
        return {
            name.removeprefix(prefix): matrix
            for name, matrix in self.matrices.items()
            if name.startswith(prefix)
        }

    def large(self) -> dict[tuple[str, str], Array]:
        """Returns the arrays that networks give, by field and path."""
        return {
            (name, path): array
            for name in LARGE_FIELDS
            for path, array in getattr(self, name).items()
        }

    def with_large(self, arrays: Mapping[tuple[str, str], Array]) -> "Features":
        """Returns these features with other arrays of networks, or without any."""
        fields: dict[str, dict[str, Array]] = {name: {} for name in LARGE_FIELDS}
        for (name, path), array in arrays.items():
            fields[name][path] = array
        return replace(
            self,
            matrices=fields["matrices"],
            layers=fields["layers"],
            tokens=fields["tokens"],
            views=fields["views"],
            retrieval=fields["retrieval"],
        )

    def arrays(self) -> dict[str, Array]:
        """Returns everything but the head outputs, for a file that NumPy reads without pickle."""
        return {
            "clip_ids": np.array(self.clip_ids, dtype=np.str_),
            "classes": np.array(self.classes, dtype=np.str_),
            "labels": self.labels,
            "targets": self.targets,
            "sources": self.sources,
            "is_train": self.is_train,
            "is_test": self.is_test,
            **{name.replace("/", "_"): matrix for name, matrix in self.matrices.items()},
        }


def extract(
    sources: Mapping[str, Sequence[EncoderSource]],
    datasets: Datasets,
    settings: EvaluateSettings,
    official: OfficialSettings | None,
    cache: AnyPath,
    board: Any,
) -> Iterator[Any]:
    """Computes the features of the train and test splits of a dataset in this process.

    Yields them without the large arrays, then each of these, in the order of `large`. An array is
    let go once it is yielded, so Ray's object store fills as this process empties.

    Args:
        sources: Where the encoders of each network are; `untrained` are those of `trained` before
            any training.
        datasets: The clip dataset, or several that count as one.
        settings: What to measure.
        official: Official lists that divide the clips.
        cache: Folder of features; what it holds is not computed again.
        board: Takes the progress.
    """
    networks = load_on_device(sources, settings)
    dataset = open_datasets(datasets)
    chosen = choose_clips(dataset, settings, official)
    found = features_of(networks, dataset, settings, poster(board), chosen=chosen, cache=cache)
    large = found.large()
    small = found.with_large({})
    del found
    yield small, list(large)
    for key in list(large):
        yield large.pop(key)


@torch.no_grad()
def features_of(
    networks: Mapping[str, Network],
    dataset: ClipDataset,
    settings: EvaluateSettings,
    post: OnProgress,
    *,
    max_clips: int | None = None,
    chosen: Chosen | None = None,
    cache: AnyPath | None = None,
) -> Features:
    """Computes the features of networks in memory, each on its own device.

    Args:
        networks: Networks by name.
        dataset: The clips.
        settings: The splits to use, and the windows of a clip.
        post: Called with the progress.
        max_clips: At most so many labelled clips of the train splits and of the test split, evenly
            spaced; by default all clips.
        chosen: The clips. Default: those of the dataset's splits.
        cache: Folder of features; what it holds is not computed again.

    Raises:
        UserError: If the cache holds features of something else.
    """
    chosen = chosen or choose(dataset, settings, max_clips)
    embedder = ShardEmbedder(networks, dataset, chosen, settings, cache)
    first_rows, owner_of_row = _clips_of(dataset, chosen, settings)
    gathered = Gathered(settings, owner_of_row, len(first_rows))
    in_retrieval = embedder.in_retrieval
    for part in shard_parts(dataset, chosen):
        wanted = np.flatnonzero(in_retrieval[part.begin : part.end])
        for path, one in embedder.embed(part).items():
            gathered.add(path, one, part.begin, part.end - part.begin, wanted)
        post(part.end, len(chosen.rows), "")
    has = {
        "video": dataset.index.num_frames[chosen.rows] > 0,
        "audio": dataset.index.has_audio[chosen.rows].astype(bool),
    }
    found = Features(
        clip_ids=tuple(chosen.clip_ids[row] for row in first_rows),
        rows=chosen.rows[first_rows],
        classes=chosen.classes,
        labels=_single_labels(chosen.targets[first_rows]),
        targets=chosen.targets[first_rows],
        sources=chosen.origins[first_rows],
        is_train=chosen.is_train[first_rows],
        is_test=chosen.is_test[first_rows],
        has={modality: _any_by(marks, owner_of_row) for modality, marks in has.items()},
        segment_rows=chosen.rows,
        segment_owners=owner_of_row,
        segment_has=has,
        retrieval_clips=owner_of_row[np.flatnonzero(in_retrieval)],
        **gathered.features(),
    )
    folds = tuple(
        Fold(one.name, one.is_train[first_rows], one.is_test[first_rows]) for one in chosen.folds
    )
    return replace(found, folds=folds, notes=extraction_notes(dataset, chosen, networks, settings))


def _clips_of(
    dataset: ClipDataset, chosen: Chosen, settings: EvaluateSettings
) -> tuple[Array, Array]:
    """Returns the first chosen row of each clip, and the clip of each chosen row."""
    every = np.arange(len(chosen.rows))
    if settings.per == "segment":
        return every, every
    numbers = dataset.index.source_number[chosen.rows]
    _, firsts, owners = np.unique(numbers, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(firsts))  # in the order of the dataset
    return np.sort(firsts), rank[owners.ravel()]


def _single_labels(targets: Array) -> Array:
    if not targets.shape[1]:
        return np.full(len(targets), -1)
    return np.where(targets.sum(axis=1) == 1, targets.argmax(axis=1), -1)


def _any_by(marks: Array, owners: Array) -> Array:
    counts: Array = np.bincount(owners, weights=marks)
    return counts > 0

"""Frozen features of a clip dataset, trained and untrained, and head outputs for retrieval.

`extract` runs as a Ray task, on a GPU if there is one. The feature of a clip is the mean over its
views, which are the crops of evenly spaced windows; it is NaN for a modality that the clip does not
have. With `per=source`, a clip here is a whole source: its views are those of all its segments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.config.base import Datasets
from pipelines.config.evaluate import EvaluateSettings, OfficialSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.joined import open_datasets
from pipelines.evaluation.choice import Chosen, Fold, choose, retrieval_clips
from pipelines.evaluation.embedder import Embedded, Embedder, mean_by
from pipelines.evaluation.networks import EncoderSource, Network, load_network
from pipelines.evaluation.official import choose_clips
from pipelines.progress import OnProgress, poster
from pipelines.quantities import counted

Array = NDArray[Any]


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
    board: Any,
) -> Features:
    """Computes the features of the train and test splits of a dataset.

    Args:
        sources: Where the encoders of each network are; `untrained` are those of `trained` before
            any training.
        datasets: The clip dataset, or several that count as one.
        settings: What to measure.
        official: Official lists that divide the clips.
        board: Takes the progress.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = {
        name: load_network(one, trained=name != "untrained", seed=settings.seed)
        for name, one in sources.items()
    }
    for network in networks.values():
        for evaluated in network.values():
            evaluated.encoder.to(device)
            if evaluated.head is not None:
                evaluated.head.to(device)
    dataset = open_datasets(datasets)
    chosen = choose_clips(dataset, settings, official)
    return features_of(networks, dataset, settings, poster(board), chosen=chosen)


@dataclass
class _Gathered:
    """What the networks gave so far, batch by batch, by path such as `video/trained`."""

    settings: EvaluateSettings
    owner_of_row: Array
    """Number of the clip, or source, that each chosen row belongs to."""
    pooled: dict[str, list[Array]] = field(default_factory=dict)
    layers: dict[str, list[Array]] = field(default_factory=dict)
    owners: dict[str, list[Array]] = field(default_factory=dict)
    heads: dict[str, list[Array]] = field(default_factory=dict)
    tokens: dict[str, list[Array]] = field(default_factory=dict)

    def add(self, path: str, found: Embedded, begin: int, count: int, wanted: Array) -> None:
        """Adds a batch of `count` rows; head outputs only of the rows that retrieval wants."""
        rows, pooled, layers = found.owners, found.pooled, found.layers
        if self.settings.average == "features":  # one row for each stored clip, to save memory
            rows, pooled = np.unique(rows), mean_by(pooled, rows, count)[np.unique(rows)]
            if layers is not None:
                layers = mean_by(layers, found.owners, count)[rows]
        self.owners.setdefault(path, []).append(self.owner_of_row[begin + rows])
        self.pooled.setdefault(path, []).append(pooled)
        if layers is not None:
            self.layers.setdefault(path, []).append(layers)
        if found.logits is not None:
            self.heads.setdefault(path, []).append(found.logits[wanted])
        if found.tokens is not None:
            self.tokens.setdefault(path, []).append(found.tokens)

    def features(self, num_clips: int) -> dict[str, dict[str, Array]]:
        """Returns the fields of `Features` that networks give."""
        owners = _joined(self.owners)
        order = {path: np.argsort(one, kind="stable") for path, one in owners.items()}
        owners = {path: one[order[path]] for path, one in owners.items()}
        views = {
            f"{kind}/{path}": matrix[order[path]]
            for kind, parts in (("pooled", self.pooled), ("layers", self.layers))
            for path, matrix in _joined(parts).items()
        }
        means: dict[str, dict[str, Array]] = {"pooled": {}, "layers": {}}
        for name, matrix in views.items():
            kind, path = name.split("/", 1)
            means[kind][path] = mean_by(matrix, owners[path], num_clips)
        is_averaged = self.settings.average == "features"
        return {
            "matrices": means["pooled"],
            "layers": means["layers"],
            "retrieval": _joined(self.heads),
            "tokens": _joined(self.tokens),
            "views": {} if is_averaged else views,
            "view_owners": {} if is_averaged else owners,
        }


def _joined(parts: Mapping[str, list[Array]]) -> dict[str, Array]:
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


@torch.no_grad()
def features_of(
    networks: Mapping[str, Network],
    dataset: ClipDataset,
    settings: EvaluateSettings,
    post: OnProgress,
    *,
    max_clips: int | None = None,
    chosen: Chosen | None = None,
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
    """
    chosen = chosen or choose(dataset, settings, max_clips)
    embedders = {
        f"{modality}/{name}": Embedder(modality, evaluated, settings)
        for name, network in networks.items()
        for modality, evaluated in network.items()
    }
    first_rows, owner_of_row = _clips_of(dataset, chosen, settings)
    gathered = _Gathered(settings, owner_of_row)
    in_retrieval = retrieval_clips(dataset, chosen, settings.retrieval_max_clips)
    # Runs once even without a clip, so that the arrays have their shapes.
    for begin in range(0, max(len(chosen.rows), 1), settings.batch_size):
        here = slice(begin, begin + settings.batch_size)
        clips = list(dataset.clips(chosen.rows[here]))
        wanted = np.flatnonzero(in_retrieval[here])
        for path, embedder in embedders.items():
            gathered.add(path, embedder.embed(clips), begin, len(clips), wanted)
        post(min(begin + settings.batch_size, len(chosen.rows)), len(chosen.rows), "")
    found = Features(
        clip_ids=tuple(chosen.clip_ids[row] for row in first_rows),
        rows=chosen.rows[first_rows],
        classes=chosen.classes,
        labels=_single_labels(chosen.targets[first_rows]),
        targets=chosen.targets[first_rows],
        sources=chosen.origins[first_rows],
        is_train=chosen.is_train[first_rows],
        is_test=chosen.is_test[first_rows],
        has={
            "video": _any_by(dataset.index.num_frames[chosen.rows] > 0, owner_of_row),
            "audio": _any_by(dataset.index.has_audio[chosen.rows].astype(bool), owner_of_row),
        },
        retrieval_clips=owner_of_row[np.flatnonzero(in_retrieval)],
        **gathered.features(len(first_rows)),  # type: ignore[arg-type]  # its keys are the arrays
    )
    folds = tuple(
        Fold(one.name, one.is_train[first_rows], one.is_test[first_rows]) for one in chosen.folds
    )
    return replace(found, folds=folds, notes=_notes(dataset, chosen, networks, settings))


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


def _notes(
    dataset: ClipDataset,
    chosen: Chosen,
    networks: Mapping[str, Network],
    settings: EvaluateSettings,
) -> tuple[str, ...]:
    """Says where clips or encoders do not allow what was asked for."""
    notes = []
    index, rows = dataset.index, chosen.rows
    pictures = rows[index.num_frames[rows] > 0]
    squares = int((index.height[pictures] == index.width[pictures]).sum())
    if settings.num_crops > 1 and squares:
        notes.append(
            f"{squares:,} of {counted(len(pictures), 'clip')} are square: one crop instead of "
            f"{settings.num_crops}"
        )
    shorter = np.minimum(index.height[pictures], index.width[pictures])
    if settings.video_size and (small := int((shorter < settings.video_size).sum())):
        notes.append(
            f"{small:,} of {counted(len(pictures), 'clip')} have a shorter side below video_size "
            f"({settings.video_size}): enlarged"
        )
    if "retrieval" in settings.measures:
        without = [
            name
            for name, network in networks.items()
            if any(evaluated.head is None for evaluated in network.values()) or len(network) < 2
        ]
        if without:
            notes.append(
                f"retrieval needs both encoders with their projection heads, which {without[0]} "
                "lacks: not measured"
            )
    return tuple(notes)

"""What came out for each clip: the file beside `scores.json` that pairs two evaluations.

The interval of "this encoder minus the champion" needs both results of each clip. An evaluation
writes them to `outcomes.npz`, which NumPy reads without pickle, and logs the file with its run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.intervals import Figure, Statistic, difference_of, figure, mean_of
from pipelines.evaluation.metrics import average_precision
from pipelines.evaluation.retrieval import DIRECTIONS, recalled
from pipelines.files import replacing
from pipelines.storage import AnyPath

Array = NDArray[Any]
OUTCOMES_FILE = "outcomes.npz"
RETRIEVAL_RECALL = 5
"""Of the recall that stands for retrieval where one number is asked for."""


@dataclass(frozen=True)
class Outcomes:
    """Results of the test clips and ranks of retrieval."""

    clip_ids: Array
    """Ids of the test clips."""
    sources: Array
    """Numbers of their sources."""
    values: Mapping[str, Array] = field(default_factory=dict)
    """By path such as `video/trained/knn`: 1 or 0 for a clip that is right or wrong, NaN for one
    that is not scored; with several labels the scores (clips, classes)."""
    targets: Array | None = None
    """Booleans (clips, classes) with several labels a clip."""
    retrieval_ids: Array = field(default_factory=lambda: np.zeros(0, np.str_))
    """Ids of the clips that were searched."""
    ranks: Mapping[str, Array] = field(default_factory=dict)
    """By direction and network, as `audio_to_video/trained`."""
    retrieval_of: str = "heads"
    """What was compared; see `EvaluateSettings`."""
    folds: Array | None = None
    """Fold of each test clip; then scores are means over folds, and ids name the fold."""

    def write(self, path: AnyPath) -> None:
        """Writes the file."""
        arrays = {"clip_ids": self.clip_ids, "sources": self.sources}
        arrays["retrieval_ids"] = self.retrieval_ids
        arrays["retrieval_of"] = np.array(self.retrieval_of)
        if self.targets is not None:
            arrays["targets"] = self.targets
        if self.folds is not None:
            arrays["folds"] = self.folds
        arrays |= {f"value:{name}": array.astype(np.float32) for name, array in self.values.items()}
        arrays |= {f"rank:{name}": array for name, array in self.ranks.items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @classmethod
    def read(cls, path: AnyPath) -> "Outcomes":
        """Reads what `write` wrote.

        Raises:
            ValueError: if the file is another.
            OSError: if it cannot be read.
        """
        try:
            with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
                arrays = dict(file.items())
            return cls(
                clip_ids=arrays["clip_ids"],
                sources=arrays["sources"],
                values=_part(arrays, "value:"),
                targets=arrays.get("targets"),
                retrieval_ids=arrays["retrieval_ids"],
                ranks=_part(arrays, "rank:"),
                retrieval_of=str(arrays.get("retrieval_of", "heads")),
                folds=arrays.get("folds"),
            )
        except (KeyError, EOFError, AttributeError, ValueError, BadZipFile) as error:
            raise ValueError(f"{path} is no {OUTCOMES_FILE} of an evaluation") from error


def _part(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def gain(outcomes: Outcomes, path: str, other: str) -> Figure:
    """Returns the score at one path minus that at another, of the clips that both scored."""
    return paired(outcomes, path, outcomes, other)


def paired(ours: Outcomes, path: str, theirs: Outcomes, other: str) -> Figure:
    """Returns our score minus theirs with a paired interval, of the clips that both scored.

    Raises:
        KeyError: if an evaluation has no such score, or no clip is in both.
    """
    ids, mine, others = np.intersect1d(ours.clip_ids, theirs.clip_ids, return_indices=True)
    first, second = ours.values[path][mine], theirs.values[other][others]
    there = np.isfinite(first).reshape(len(ids), -1).all(axis=1)
    there &= np.isfinite(second).reshape(len(ids), -1).all(axis=1)
    if not there.any():
        raise KeyError(path)
    targets, folds = (
        None if one is None else one[mine][there] for one in (ours.targets, ours.folds)
    )
    return figure(
        difference_of(
            _statistic(first[there], targets, folds), _statistic(second[there], targets, folds)
        ),
        ours.sources[mine][there],
    )


def score_of(outcomes: Outcomes, path: str) -> Figure:
    """Returns the score at a path with its interval, of the clips that it scored."""
    values = outcomes.values[path]
    there = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    targets, folds = (
        None if one is None else one[there] for one in (outcomes.targets, outcomes.folds)
    )
    return figure(_statistic(values[there], targets, folds), outcomes.sources[there])


def paired_retrieval(ours: Outcomes, theirs: Outcomes) -> Figure:
    """Returns our recall@5 minus theirs, the mean of both directions, paired by clip.

    Raises:
        KeyError: if they searched other clips, or compared something else of them.
    """
    if ours.retrieval_of != theirs.retrieval_of:
        raise KeyError("retrieval_of")
    if ours.retrieval_ids.tolist() != theirs.retrieval_ids.tolist():
        raise KeyError("retrieval")
    first, second = _recall(ours), _recall(theirs)
    return figure(difference_of(mean_of(first), mean_of(second)), np.arange(len(first)))


def _recall(outcomes: Outcomes) -> Array:
    both = [recalled(outcomes.ranks[f"{way}/trained"], RETRIEVAL_RECALL) for way in DIRECTIONS]
    values: Array = np.mean(both, axis=0)
    return values


def _statistic(values: Array, targets: Array | None, folds: Array | None) -> Statistic:
    if folds is None:
        return mean_of(values) if targets is None else average_precision(values, targets)
    parts = [
        (rows, _statistic(values[rows], None if targets is None else targets[rows], None))
        for rows in (np.flatnonzero(folds == fold) for fold in np.unique(folds))
    ]

    def mean_over_folds(weights: Array) -> Array:
        found: Array = np.mean([one(weights[:, rows]) for rows, one in parts], axis=0)
        return found

    return mean_over_folds

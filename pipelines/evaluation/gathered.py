"""Collects what encoders give shard by shard, by path such as `video/trained`.

Every number is held once: rows go where they stay, into arrays as long as they may become. The
system gives memory to the part alone that is written.
"""

from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipelines.config.evaluate import EvaluateSettings
from pipelines.evaluation.embedder import Embedded, mean_by

Array = NDArray[Any]


class FoundFields(TypedDict):
    """The fields of `Features` that networks give, by path."""

    matrices: dict[str, Array]
    layers: dict[str, Array]
    retrieval: dict[str, Array]
    tokens: dict[str, Array]
    views: dict[str, Array]
    view_owners: dict[str, Array]


@dataclass
class _Means:
    """The mean row of each clip; NaN for a clip without rows."""

    sums: Array
    """(clips, D)"""
    counts: Array

    @classmethod
    def of(cls, num_clips: int, like: Array) -> "_Means":
        return cls(np.zeros((num_clips, like.shape[1]), like.dtype), np.zeros(num_clips, np.int64))

    def add(self, rows: Array, owners: Array) -> None:
        """Adds rows to the sums of their clips."""
        clips, number = np.unique(owners, return_inverse=True)
        counts = np.bincount(number, minlength=len(clips))
        self.sums[clips] += mean_by(rows, number, len(clips)) * counts[:, None].astype(rows.dtype)
        self.counts[clips] += counts

    def finished(self) -> Array:
        """Turns the sums into means, in their place."""
        with np.errstate(invalid="ignore"):
            self.sums /= self.counts[:, None]
        return self.sums


@dataclass
class _Rows:
    """Rows one after another, in an array of the most that there may be."""

    array: Array
    count: int = 0

    @classmethod
    def of(cls, most: int, like: Array) -> "_Rows":
        return cls(np.empty((most, *like.shape[1:]), like.dtype))

    def add(self, rows: Array) -> None:
        self.array[self.count : self.count + len(rows)] = rows
        self.count += len(rows)

    def finished(self) -> Array:
        return self.array[: self.count]


@dataclass
class Gathered:
    """What the networks gave so far, batch by batch, by path such as `video/trained`."""

    settings: EvaluateSettings
    owner_of_row: Array
    """Number of the clip, or source, that each chosen row belongs to."""
    num_clips: int
    means: dict[str, _Means] = field(default_factory=dict)
    """By kind and path, as `pooled/video/trained`."""
    rows: dict[str, dict[str, _Rows]] = field(default_factory=dict)
    """By field of `Features` and path: single views where scores are averaged, and their owners;
    head outputs and tokens."""

    def add(self, path: str, found: Embedded, begin: int, count: int, wanted: Array) -> None:
        """Adds a batch of `count` rows; head outputs only of the rows that retrieval wants."""
        owners = self.owner_of_row[begin + found.owners]
        for kind, rows in (("pooled", found.pooled), ("layers", found.layers)):
            if rows is None:
                continue
            name, by_row, of = f"{kind}/{path}", rows, owners
            if self.settings.average == "features":  # the views of a stored clip count as one row
                there = np.unique(found.owners)
                by_row = mean_by(rows, found.owners, count)[there]
                of = self.owner_of_row[begin + there]
            else:
                self._add("views", name, rows)
            if name not in self.means:
                self.means[name] = _Means.of(self.num_clips, rows)
            self.means[name].add(by_row, of)
        if self.settings.average != "features":
            self._add("view_owners", path, owners)
        if found.logits is not None:
            self._add("retrieval", path, found.logits[wanted])
        if found.tokens is not None:
            self._add("tokens", path, found.tokens)

    def _add(self, name: str, path: str, rows: Array) -> None:
        kept = self.rows.setdefault(name, {})
        if path not in kept:
            views = self.settings.num_windows * self.settings.num_crops
            each = views if name in ("views", "view_owners") else 1
            kept[path] = _Rows.of(len(self.owner_of_row) * each, rows)
        kept[path].add(rows)

    def features(self) -> FoundFields:
        """Returns the fields of `Features` that networks give."""
        means: dict[str, dict[str, Array]] = {"pooled": {}, "layers": {}}
        for name, one in self.means.items():
            kind, path = name.split("/", 1)
            means[kind][path] = one.finished()
        found = {
            name: {path: rows.finished() for path, rows in self.rows.get(name, {}).items()}
            for name in ("retrieval", "tokens", "views", "view_owners")
        }
        order = {path: np.argsort(one, kind="stable") for path, one in found["view_owners"].items()}
        found["view_owners"] = {
            path: one[order[path]] for path, one in found["view_owners"].items()
        }
        found["views"] = {
            name: _in_order(rows, order[name.split("/", 1)[1]])
            for name, rows in found["views"].items()
        }
        return FoundFields(
            matrices=means["pooled"],
            layers=means["layers"],
            retrieval=found["retrieval"],
            tokens=found["tokens"],
            views=found["views"],
            view_owners=found["view_owners"],
        )


def _in_order(matrix: Array, order: Array) -> Array:
    """Returns rows in an order; no copy of those that are in it."""
    is_sorted = bool((order == np.arange(len(order))).all())
    return matrix if is_sorted else matrix[order]

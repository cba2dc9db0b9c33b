"""Collects what encoders give shard by shard, by path such as `video/trained`.

Every number is held once: means of clips are summed where they stay, and parts are let go as they
are put together.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.config.evaluate import EvaluateSettings
from pipelines.evaluation.embedder import Embedded, mean_by

Array = NDArray[Any]


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
class Gathered:
    """What the networks gave so far, batch by batch, by path such as `video/trained`."""

    settings: EvaluateSettings
    owner_of_row: Array
    """Number of the clip, or source, that each chosen row belongs to."""
    num_clips: int
    means: dict[str, _Means] = field(default_factory=dict)
    """By kind and path, as `pooled/video/trained`."""
    views: dict[str, list[Array]] = field(default_factory=dict)
    """Single views, by kind and path; collected where scores are averaged."""
    owners: dict[str, list[Array]] = field(default_factory=dict)
    heads: dict[str, list[Array]] = field(default_factory=dict)
    tokens: dict[str, list[Array]] = field(default_factory=dict)

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
                self.views.setdefault(name, []).append(rows)
            if name not in self.means:
                self.means[name] = _Means.of(self.num_clips, rows)
            self.means[name].add(by_row, of)
        if self.settings.average != "features":
            self.owners.setdefault(path, []).append(owners)
        if found.logits is not None:
            self.heads.setdefault(path, []).append(found.logits[wanted])
        if found.tokens is not None:
            self.tokens.setdefault(path, []).append(found.tokens)

    def features(self) -> dict[str, dict[str, Array]]:
        """Returns the fields of `Features` that networks give; nothing is left here."""
        owners = _joined(self.owners)
        order = {path: np.argsort(one, kind="stable") for path, one in owners.items()}
        means: dict[str, dict[str, Array]] = {"pooled": {}, "layers": {}}
        for name in list(self.means):
            kind, path = name.split("/", 1)
            means[kind][path] = self.means.pop(name).finished()
        return {
            "matrices": means["pooled"],
            "layers": means["layers"],
            "retrieval": _joined(self.heads),
            "tokens": _joined(self.tokens),
            "views": {
                name: _in_order(matrix, order[name.split("/", 1)[1]])
                for name, matrix in _joined(self.views).items()
            },
            "view_owners": {path: one[order[path]] for path, one in owners.items()},
        }


def _in_order(matrix: Array, order: Array) -> Array:
    """Returns rows in an order; no copy of those that are in it."""
    is_sorted = bool((order == np.arange(len(order))).all())
    return matrix if is_sorted else matrix[order]


def _joined(parts: dict[str, list[Array]]) -> dict[str, Array]:
    """Puts the parts of each array together, and lets each go once it is copied."""
    return {name: _one(parts.pop(name)) for name in list(parts)}


def _one(parts: list[Array]) -> Array:
    if len(parts) == 1:
        return parts[0]
    total = sum(len(one) for one in parts)
    kind = np.result_type(*parts)
    found = np.empty((total, *parts[0].shape[1:]), kind)
    begin = 0
    parts.reverse()
    while parts:
        part = parts.pop()
        found[begin : begin + len(part)] = part
        begin += len(part)
    return found

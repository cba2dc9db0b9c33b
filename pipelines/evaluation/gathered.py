"""Collects what encoders give shard by shard, by path such as `video/trained`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.config.evaluate import EvaluateSettings
from pipelines.evaluation.embedder import Embedded, mean_by

Array = NDArray[Any]


@dataclass
class Gathered:
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

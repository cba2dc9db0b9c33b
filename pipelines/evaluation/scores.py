"""Scores of frozen features: k-NN and a linear probe, and how far chance moves them.

`classifiers.score` gives `FeatureScores`; an evaluation adds what was scored and on what, and
writes the whole as `scores.json` (`Scores`). Accuracies are shares from 0 to 1.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

MEASURES = {"knn": "nearest neighbors", "linear": "linear probe"}
"""The measures with their names for people."""


@dataclass(frozen=True)
class NetworkScore:
    """Accuracies of the features of one network and modality."""

    knn: float
    linear: float
    knn_per_class: tuple[float | None, ...]
    """In the order of the classes; None for a class without a held-out clip."""
    linear_per_class: tuple[float | None, ...]
    linear_l2: float
    """The weight of the L2 penalty that the probe chose."""
    majority: float
    """Accuracy of always naming the most frequent class."""
    num_train: int
    """Labelled clips with this modality that the classifiers learn from."""
    num_test: int
    """Labelled clips with this modality that are scored."""

    @property
    def accuracy(self) -> dict[str, float]:
        """Accuracies by measure."""
        return {"knn": self.knn, "linear": self.linear}

    @property
    def by_class(self) -> dict[str, tuple[float | None, ...]]:
        """Accuracies of the classes by measure."""
        return {"knn": self.knn_per_class, "linear": self.linear_per_class}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "NetworkScore":
        """Reads what `asdict` wrote; unknown keys, of a later version, are left out."""
        known = {field.name: values[field.name] for field in fields(cls)}
        for name in ("knn_per_class", "linear_per_class"):
            known[name] = tuple(known[name])
        return cls(**known)


@dataclass(frozen=True)
class FeatureScores:
    """What `score` finds in features."""

    classes: tuple[str, ...]
    num_train: int
    num_test: int
    """Clips of the splits, with a label or without."""
    reason: str
    """Why nothing is scored; empty if something is."""
    modalities: Mapping[str, Mapping[str, NetworkScore]]
    """By modality (`video`, `audio`) and network (`trained`, `untrained`)."""

    def accuracies(self) -> dict[str, float]:
        """Accuracies by path, such as `video/trained/knn`."""
        return {
            f"{modality}/{network}/{measure}": value
            for modality, networks in self.modalities.items()
            for network, found in networks.items()
            for measure, value in found.accuracy.items()
        }


@dataclass(frozen=True)
class Scores:
    """The content of `scores.json`: what was scored, on what, and the result.

    Two results are comparable only if their `dataset_id` is equal.
    """

    checkpoint: str
    step: int
    """Training steps done."""
    pretrain_run_id: str
    evaluate_run_id: str
    dataset_id: str
    role: str
    """`student` or `teacher`."""
    num_windows: int
    """Windows of a clip whose features are averaged."""
    found: FeatureScores

    def to_json(self) -> dict[str, Any]:
        """The values of `scores.json`, on one level but for the modalities."""
        values = asdict(self)
        return values | values.pop("found")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Scores":
        """Reads what `to_json` gave.

        Raises:
            KeyError: if a value is missing.
        """
        modalities = {
            modality: {name: NetworkScore.from_json(found) for name, found in networks.items()}
            for modality, networks in values["modalities"].items()
        }
        found = FeatureScores(
            classes=tuple(values["classes"]),
            num_train=values["num_train"],
            num_test=values["num_test"],
            reason=values["reason"],
            modalities=modalities,
        )
        names = [field.name for field in fields(cls) if field.name != "found"]
        return cls(**{name: values[name] for name in names}, found=found)


def read_scores(path: Path) -> Scores:
    """Reads a `scores.json`.

    Raises:
        ValueError: if it is none.
        OSError: if it cannot be read.
    """
    try:
        return Scores.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no scores.json of an evaluation") from error


def standard_error(share: float, count: int | None) -> float:
    """Returns the standard error of a share of `count` clips; 0 if the count is unknown."""
    if not count or not math.isfinite(share):
        return 0.0
    share = min(max(share, 0.0), 1.0)
    return math.sqrt(share * (1 - share) / count)


def percent(share: float | None) -> str:
    r"""Formats a share as a percentage, with a space that does not break.

    >>> percent(0.5), percent(None)
    ('50.0\xa0%', 'not measured')
    """
    if share is None or not math.isfinite(share):
        return "not measured"
    return f"{100 * share:.1f}\u00a0%"

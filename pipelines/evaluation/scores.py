"""Scores of frozen features, and how far chance moves them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.config.evaluate import EvaluateSettings
from pipelines.evaluation.features import Features
from xkd_core.probes import accuracy, fit_linear_probe, knn_predict, per_class_accuracy


def standard_error(share: float, count: int | None) -> float:
    """Standard error of a share that was counted over `count` clips; 0 where that is unknown."""
    if not count or not math.isfinite(share):
        return 0.0
    share = min(max(share, 0.0), 1.0)
    return math.sqrt(share * (1 - share) / count)


MODALITIES = ("video", "audio")


def score(features: Features, settings: EvaluateSettings) -> dict[str, Any]:
    """Scores of both modalities, trained and untrained, with the classes and the splits."""
    reason = _why_no_scores(features)
    result: dict[str, Any] = {
        "classes": list(features.classes),
        "num_train": int(features.is_train.sum()),
        "num_test": int(features.is_test.sum()),
        "reason": reason,
        "modalities": {},
    }
    if reason:
        return result
    for modality in MODALITIES:
        networks = {
            network: _score_network(features, matrix, settings)
            for network, matrix in features.of(modality).items()
        }
        if all(networks.values()):
            result["modalities"][modality] = networks
    return result


def _why_no_scores(features: Features) -> str:
    if not features.clip_ids:
        return "no clip lies in a split that is scored"
    if not features.classes:
        return "no clip has a label"
    if not (features.is_test & (features.labels >= 0)).any():
        return "no labelled clip is held out"
    num_classes = len(set(features.labels[features.is_train & (features.labels >= 0)].tolist()))
    if num_classes < 2:
        return f"the clips trained on have {num_classes} class, and a probe needs two"
    return ""


def knn_scores(features: Features, settings: EvaluateSettings) -> dict[str, float]:
    """Accuracy of the network `trained` by nearest neighbors, for modalities that can be scored."""
    sides = {
        modality: _labelled_sides(features, features.of(modality)["trained"])
        for modality in MODALITIES
    }
    return {
        modality: accuracy(_knn(found, len(features.classes), settings), found.y_test)
        for modality, found in sides.items()
        if found is not None
    }


@dataclass(frozen=True)
class _Sides:
    """Labelled features, of the clips that are learnt from and of those that are scored."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def _labelled_sides(features: Features, matrix: NDArray[np.float32]) -> _Sides | None:
    """One network's; None if the modality is missing on either side."""
    there = np.isfinite(matrix).all(axis=1) & (features.labels >= 0)
    train, test = there & features.is_train, there & features.is_test
    labels = torch.tensor(features.labels)
    if len(set(features.labels[train].tolist())) < 2 or not test.any():
        return None
    return _Sides(
        x_train=torch.from_numpy(matrix[train]),
        y_train=labels[torch.from_numpy(train)],
        x_test=torch.from_numpy(matrix[test]),
        y_test=labels[torch.from_numpy(test)],
    )


def _knn(sides: _Sides, num_classes: int, settings: EvaluateSettings) -> Tensor:
    return knn_predict(
        sides.x_train,
        sides.y_train,
        sides.x_test,
        num_classes=num_classes,
        neighbors=min(settings.neighbors, len(sides.x_train)),
        temperature=settings.knn_temperature,
    )


def _score_network(
    features: Features, matrix: NDArray[np.float32], settings: EvaluateSettings
) -> dict[str, Any]:
    """k-NN and linear probe of one network; empty if the modality is missing on either side."""
    sides = _labelled_sides(features, matrix)
    if sides is None:
        return {}
    num_classes, y_test = len(features.classes), sides.y_test
    knn = _knn(sides, num_classes, settings)
    probe = fit_linear_probe(
        sides.x_train,
        sides.y_train,
        num_classes=num_classes,
        l2=settings.linear_l2,
        seed=settings.seed,
    )
    linear = probe.predict(sides.x_test)
    counts = np.bincount(y_test.numpy(), minlength=num_classes)
    return {
        "knn": accuracy(knn, y_test),
        "linear": accuracy(linear, y_test),
        "knn_per_class": _without_nan(per_class_accuracy(knn, y_test, num_classes)),
        "linear_per_class": _without_nan(per_class_accuracy(linear, y_test, num_classes)),
        "linear_l2": probe.l2,
        "majority": float(counts.max() / counts.sum()),
        "num_train": len(sides.y_train),
        "num_test": len(y_test),
    }


def _without_nan(values: list[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def flat_scores(scores: dict[str, Any]) -> dict[str, float]:
    """`evaluation/video/trained/knn` and so on: accuracies from 0 to 1."""
    return {
        f"evaluation/{modality}/{network}/{measure}": values[measure]
        for modality, networks in scores["modalities"].items()
        for network, values in networks.items()
        for measure in ("knn", "linear")
    }


MEASURES = {"knn": "nearest neighbors", "linear": "linear probe"}


def percent(share: float | None) -> str:
    r"""Writes a share of 1; number and sign stay on one line.

    >>> percent(0.5), percent(None)
    ('50.0\xa0%', 'not measured')
    """
    if share is None or not math.isfinite(share):
        return "not measured"
    return f"{100 * share:.1f}\u00a0%"

"""k-NN and a linear probe over frozen features: features in, accuracies out."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.config.evaluate import EvaluateSettings
from pipelines.evaluation.features import Features
from pipelines.evaluation.scores import FeatureScores, NetworkScore
from pipelines.evaluation.solvers import TrainingRows, fit_and_score
from xkd_core.encoders import MODALITIES
from xkd_core.probes import accuracy, knn_predict, one_hot, per_class_accuracy


def score(features: Features, settings: EvaluateSettings) -> FeatureScores:
    """Scores both modalities of all networks; leaves out a modality that cannot be scored."""
    reason = _why_no_scores(features)
    modalities: dict[str, dict[str, NetworkScore]] = {}
    for modality in () if reason else MODALITIES:
        networks = {
            network: _score_network(features, matrix, settings)
            for network, matrix in features.of(modality).items()
        }
        scored = {name: found for name, found in networks.items() if found is not None}
        if len(scored) == len(networks):
            modalities[modality] = scored
    return FeatureScores(
        classes=features.classes,
        num_train=int(features.is_train.sum()),
        num_test=int(features.is_test.sum()),
        reason=reason,
        modalities=modalities,
    )


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
    """Returns k-NN accuracies of the network `trained`, for modalities that can be scored."""
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
    """Labelled features of the training clips and of the held-out clips."""

    x_train: Tensor
    y_train: Tensor
    train_sources: NDArray[np.int32]
    x_test: Tensor
    y_test: Tensor


def _labelled_sides(features: Features, matrix: NDArray[np.float32]) -> _Sides | None:
    """Returns those of one network; None if a side has no clip with the modality."""
    there = np.isfinite(matrix).all(axis=1) & (features.labels >= 0)
    train, test = there & features.is_train, there & features.is_test
    labels = torch.tensor(features.labels)
    if len(set(features.labels[train].tolist())) < 2 or not test.any():
        return None
    return _Sides(
        x_train=torch.from_numpy(matrix[train]),
        y_train=labels[torch.from_numpy(train)],
        train_sources=features.sources[train],
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
) -> NetworkScore | None:
    """Scores one network; None if a side has no clip with the modality."""
    sides = _labelled_sides(features, matrix)
    if sides is None:
        return None
    num_classes, y_test = len(features.classes), sides.y_test
    knn = _knn(sides, num_classes, settings)
    probe = fit_and_score(
        "linear",
        TrainingRows(
            sides.x_train.numpy(),
            one_hot(sides.y_train, num_classes).bool().numpy(),
            sides.train_sources,
        ),
        sides.x_test.numpy(),
        settings.linear_l2,
        seed=settings.seed,
        max_solver_gb=settings.max_solver_gb,
        device=torch.device("cuda") if settings.use_gpu and torch.cuda.is_available() else None,
    )
    linear = torch.from_numpy(probe.scores.argmax(axis=1))
    counts = np.bincount(y_test.numpy(), minlength=num_classes)
    return NetworkScore(
        knn=accuracy(knn, y_test),
        linear=accuracy(linear, y_test),
        knn_per_class=_without_nan(per_class_accuracy(knn, y_test, num_classes)),
        linear_per_class=_without_nan(per_class_accuracy(linear, y_test, num_classes)),
        linear_l2=probe.penalty,
        majority=float(counts.max() / counts.sum()),
        num_train=len(sides.y_train),
        num_test=len(y_test),
    )


def _without_nan(values: list[float]) -> tuple[float | None, ...]:
    return tuple(None if math.isnan(value) else value for value in values)

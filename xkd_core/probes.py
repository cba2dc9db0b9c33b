"""Evaluation of frozen features: nearest neighbors and a linear probe.

Everything is deterministic. The probe's penalty is chosen by cross-validation on the training data;
test labels are used only to compute the accuracy.

Protocol: XKD, section 5; nearest neighbors as in DINO, arXiv:2104.14294.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from xkd_core.shapes import Float, Int, Tensor

_ROWS_AT_ONCE = 4096
_MAX_ITERATIONS = 300
_SMALLEST_SPREAD = 1e-6
"""A feature with a deviation below this share of its mean is treated as constant."""


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on standardized features, in float64."""

    mean: Float[Tensor, " D"]
    std: Float[Tensor, " D"]
    weight: Float[Tensor, "D num_classes"]
    bias: Float[Tensor, " num_classes"]
    l2: float
    """The chosen penalty."""

    def logits(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B num_classes"]:
        """Computes logits; the softmax of a row gives class probabilities."""
        return (features.double() - self.mean) / self.std @ self.weight + self.bias

    def predict(self, features: Float[Tensor, "B D"]) -> Int[Tensor, " B"]:
        """Returns the most likely class of each row."""
        return self.logits(features).argmax(dim=1)


def fit_linear_probe(
    train: Float[Tensor, "B D"],
    labels: Int[Tensor, " B"],
    *,
    num_classes: int,
    l2: Sequence[float],
    seed: int,
    num_folds: int = 5,
) -> LinearProbe:
    """Fits a probe whose penalty is chosen by cross-validation on the training data.

    Minimizes the sum of cross-entropies + l2 / 2 |W|^2, like scikit-learn's logistic regression
    with C = 1 / l2. Chooses the penalty with the smallest held-out cross-entropy, which is less
    noisy than accuracy when there are few rows.

    Raises:
        ValueError: If there are no rows or no penalties, a feature is not finite, or a label is not
            a class.
    """
    _check(train, labels, num_classes)
    if not l2 or min(l2) <= 0.0:
        raise ValueError(f"l2 ({tuple(l2)}) must hold penalties above 0")
    penalties = sorted(l2, reverse=True)
    if len(penalties) == 1:
        return _fit(train, labels, num_classes, penalties)[0]
    fold = stratified_folds(labels, num_folds, seed)
    loss = torch.zeros(len(penalties), dtype=torch.float64)
    for number in range(num_folds):
        held_out = fold == number
        if held_out.all() or not held_out.any():  # fewer rows than folds
            continue
        probes = _fit(train[~held_out], labels[~held_out], num_classes, penalties)
        for index, probe in enumerate(probes):
            logits = probe.logits(train[held_out])
            loss[index] += F.cross_entropy(logits, labels[held_out].long(), reduction="sum").item()
    best = int(loss.argmin())
    return _fit(train, labels, num_classes, penalties[: best + 1])[-1]


def stratified_folds(labels: Int[Tensor, " B"], num_folds: int, seed: int) -> Int[Tensor, " B"]:
    """Distributes the rows of each class over the folds as evenly as possible.

    Raises:
        ValueError: If there are fewer than two folds.
    """
    if num_folds < 2:
        raise ValueError(f"num_folds ({num_folds}) must be 2 or more")
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels.cpu()[shuffled].argsort(stable=True)]
    folds = torch.empty(len(labels), dtype=torch.int64)
    folds[by_class] = torch.arange(len(labels)) % num_folds
    return folds.to(labels.device)


def knn_predict(
    train: Float[Tensor, "B_train D"],
    train_labels: Int[Tensor, " B_train"],
    test: Float[Tensor, "B D"],
    *,
    num_classes: int,
    neighbors: int,
    temperature: float,
) -> Int[Tensor, " B"]:
    """Predicts by a vote of the nearest training rows with weights exp(cosine / temperature).

    Raises:
        ValueError: If there are fewer training rows than `neighbors`, a feature is not finite, or a
            label is not a class.
    """
    _check(train, train_labels, num_classes)
    if not 1 <= neighbors <= len(train):
        raise ValueError(f"neighbors ({neighbors}) must be 1 to {len(train)}, the training rows")
    if temperature <= 0.0:
        raise ValueError(f"temperature ({temperature:g}) must be above 0")
    directions = _directions(train)
    predictions = []
    for rows in torch.split(test, _ROWS_AT_ONCE):
        similarity, nearest = (_directions(rows) @ directions.T).topk(neighbors, dim=1)
        # Relative to the nearest row, since exp overflows at low temperatures.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(rows), num_classes)
        votes.scatter_add_(1, train_labels[nearest].long(), weights)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


def accuracy(predicted: Int[Tensor, " B"], true: Int[Tensor, " B"]) -> float:
    """Returns the share of rows that are predicted correctly.

    Raises:
        ValueError: If there is no row.
    """
    if not len(true):
        raise ValueError("accuracy needs one row or more")
    return float((predicted == true).double().mean())


def per_class_accuracy(
    predicted: Int[Tensor, " B"], true: Int[Tensor, " B"], num_classes: int
) -> list[float]:
    """Returns the accuracy within each class; NaN for a class without rows."""
    correct = true[predicted == true].bincount(minlength=num_classes).double()
    shares: list[float] = (correct / true.bincount(minlength=num_classes)).tolist()
    return shares


def _check(features: Tensor, labels: Tensor, num_classes: int) -> None:
    if not len(features):
        raise ValueError("a probe needs one training row or more")
    if not features.isfinite().all():
        raise ValueError("a probe needs finite features, and some are infinite or not a number")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels ({low} to {high}) must be 0 to {num_classes - 1}, below num_classes"
        )


def _directions(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=1)


def _fit(
    train: Tensor, labels: Tensor, num_classes: int, penalties: Sequence[float]
) -> list[LinearProbe]:
    """Fits one probe a penalty, from large to small; each starts from the one before."""
    features = train.double()
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    std = std.where(std > _SMALLEST_SPREAD * mean.abs(), 1.0)
    features = (features - mean) / std
    weight = features.new_zeros(features.shape[1], num_classes, requires_grad=True)
    bias = features.new_zeros(num_classes, requires_grad=True)
    probes = []
    for l2 in penalties:
        _minimize(features, labels.long(), weight, bias, l2)
        parameters = weight.detach().clone(), bias.detach().clone()
        probes.append(LinearProbe(mean, std, *parameters, l2))
    return probes


def _minimize(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, l2: float) -> None:
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=1e-7,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def loss_and_gradient() -> float:
        optimizer.zero_grad()
        penalty = 0.5 * l2 / len(features) * weight.square().sum()
        loss = F.cross_entropy(features @ weight + bias, labels) + penalty
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    optimizer.step(loss_and_gradient)  # type: ignore[no-untyped-call]

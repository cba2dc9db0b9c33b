"""Evaluation of frozen features: nearest neighbors and a linear layer trained on batches.

Everything is deterministic. The layer is for features that do not fit a solver's memory; for those
that do, the caller takes the exact solvers of scikit-learn. Test labels are used only to compute
the accuracy.

Protocol: XKD, section 5; nearest neighbors as in DINO, arXiv:2104.14294.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from xkd_core.shapes import Float, Int, Tensor

Loss = Literal["softmax", "sigmoid", "squared_hinge"]

_ROWS_AT_ONCE = 4096
_LEARNING_RATE = 1e-2
"""Of Adam on standardized features, at the start; it falls to 0 along a cosine."""
_SMALLEST_SPREAD = 1e-6
"""A feature with a deviation below this share of its mean is treated as constant."""


@dataclass(frozen=True)
class LinearLayers:
    """Linear layers on standardized features, one for each penalty, trained side by side."""

    mean: Float[Tensor, " D"]
    std: Float[Tensor, " D"]
    weight: Float[Tensor, "num_penalties D num_classes"]
    bias: Float[Tensor, "num_penalties num_classes"]

    def logits(
        self, features: Float[Tensor, "B D"]
    ) -> Float[Tensor, "num_penalties B num_classes"]:
        """Computes the logits of each layer, on the device of the features."""
        parts = []
        for rows in torch.split(features, _ROWS_AT_ONCE):
            scaled = (rows.to(self.weight.device).float() - self.mean) / self.std
            parts.append((scaled @ self.weight + self.bias[:, None]).to(features.device))
        return torch.cat(parts, dim=1)


def fit_linear_layers(
    train: Float[Tensor, "B D"],
    targets: Float[Tensor, "B num_classes"],
    *,
    l2: Sequence[float],
    loss: Loss = "softmax",
    epochs: int = 30,
    min_steps: int = 1500,
    batch_size: int = 1024,
    seed: int = 0,
    device: torch.device | None = None,
) -> LinearLayers:
    """Trains a layer for each penalty, all on the same batches.

    Minimizes the sum of losses + l2 / 2 |W|^2, whose optimum is that of scikit-learn's logistic
    regression or linear SVM with C = 1 / l2. Features stay where they are, in memory or mapped
    from a file; only a batch at a time moves to `device`.

    Args:
        train: Features.
        targets: Rows of zeros and ones; a single one with `softmax`.
        l2: Penalties.
        loss: Cross-entropy of all classes, or of each, or the squared hinge loss of each.
        epochs: Passes over the features.
        min_steps: Steps at least; few rows get more passes.
        batch_size: Rows of a step.
        seed: Seed of the order of the rows.
        device: Where the layers train; by default where the features are.

    Raises:
        ValueError: If there are no rows or no penalties, or a feature is not finite.
    """
    if not l2 or min(l2) <= 0.0:
        raise ValueError(f"l2 ({tuple(l2)}) must hold penalties above 0")
    _check_features(train)
    device = device or train.device
    mean, std = _mean_and_deviation(train)
    mean, std = mean.to(device), std.to(device)
    shape = (len(l2), train.shape[1], targets.shape[1])
    weight = torch.zeros(shape, device=device, requires_grad=True)
    bias = torch.zeros(shape[0], shape[2], device=device, requires_grad=True)
    penalties = torch.tensor(list(l2), device=device) / len(train)
    optimizer = torch.optim.Adam([weight, bias], lr=_LEARNING_RATE)
    steps_per_epoch = -(-len(train) // batch_size)
    epochs = max(epochs, -(-min_steps // steps_per_epoch))
    steps = epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(train), generator=generator).to(train.device)
        for rows in torch.split(order, batch_size):
            scaled = (train[rows].to(device).float() - mean) / std
            logits = scaled @ weight + bias[:, None]
            total = _batch_loss(logits, targets[rows].to(device), loss)
            total = total + 0.5 * (penalties * weight.square().sum(dim=(1, 2))).sum()
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]  # torch has no types here
            optimizer.step()
            schedule.step()
    return LinearLayers(mean, std, weight.detach(), bias.detach())


def _batch_loss(logits: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """Sums over the layers the mean loss of a row."""
    targets = targets.float().expand_as(logits)
    if loss == "softmax":
        losses = -logits.log_softmax(dim=2) * targets
    elif loss == "sigmoid":
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    else:
        losses = (1.0 - (2.0 * targets - 1.0) * logits).relu().square()
    return losses.sum(dim=2).mean(dim=1).sum()


def _mean_and_deviation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Computes both in float64, a part of the rows at a time; constant features get deviation 1."""
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    for rows in torch.split(features, _ROWS_AT_ONCE):
        total += rows.double().sum(dim=0)
    mean = total / len(features)
    squares = torch.zeros_like(mean)
    for rows in torch.split(features, _ROWS_AT_ONCE):
        squares += (rows.double() - mean).square().sum(dim=0)
    std = (squares / len(features)).sqrt()
    std = std.where(std > _SMALLEST_SPREAD * mean.abs(), 1.0)
    return mean.float(), std.float()


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


def source_folds(
    labels: Int[Tensor, " B"], sources: Int[Tensor, " B"], num_folds: int, seed: int
) -> Int[Tensor, " B"]:
    """Distributes whole sources over the folds, those of each class as evenly as possible.

    Rows of one source, such as segments of one video, are alike: in two folds they would let a
    classifier be judged by what it was fitted to. The class of a source is that of its first row.

    Raises:
        ValueError: If there are fewer than two folds.
    """
    number_of = {source: number for number, source in enumerate(dict.fromkeys(sources.tolist()))}
    numbers = torch.tensor([number_of[source] for source in sources.tolist()], dtype=torch.int64)
    class_of = dict(zip(reversed(numbers.tolist()), reversed(labels.tolist()), strict=True))
    classes = torch.tensor([class_of[number] for number in range(len(number_of))])
    return stratified_folds(classes, num_folds, seed)[numbers].to(labels.device)


def knn_votes(
    train: Float[Tensor, "B_train D"],
    train_targets: Float[Tensor, "B_train num_classes"],
    test: Float[Tensor, "B D"],
    *,
    neighbors: int,
    temperature: float,
) -> Float[Tensor, "B num_classes"]:
    """Returns the share of each class in the vote of the nearest training rows.

    A neighbor votes for its classes with weight exp(cosine / temperature).

    Raises:
        ValueError: If there are fewer training rows than `neighbors`, or a feature is not finite.
    """
    _check_features(train)
    if not 1 <= neighbors <= len(train):
        raise ValueError(f"neighbors ({neighbors}) must be 1 to {len(train)}, the training rows")
    if temperature <= 0.0:
        raise ValueError(f"temperature ({temperature:g}) must be above 0")
    directions = _directions(train)
    votes = []
    for rows in torch.split(test, _ROWS_AT_ONCE):
        similarity, nearest = (_directions(rows) @ directions.T).topk(neighbors, dim=1)
        weights = (similarity / temperature).softmax(dim=1)
        votes.append((weights[..., None] * train_targets[nearest].double()).sum(dim=1))
    return torch.cat(votes)


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
    _check_features(train)
    targets = one_hot(train_labels, num_classes)
    votes = knn_votes(train, targets, test, neighbors=neighbors, temperature=temperature)
    return votes.argmax(dim=1)


def one_hot(labels: Int[Tensor, " B"], num_classes: int) -> Float[Tensor, "B num_classes"]:
    """Returns rows with a one at the label.

    Raises:
        ValueError: If a label is not a class.
    """
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise ValueError(
            f"labels ({int(labels.min())} to {int(labels.max())}) must be 0 to {num_classes - 1}, "
            "below num_classes"
        )
    return F.one_hot(labels.long(), num_classes).float()


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


def _check_features(features: Tensor) -> None:
    if not len(features):
        raise ValueError("a probe needs one training row or more")
    for rows in torch.split(features, _ROWS_AT_ONCE):
        if not rows.isfinite().all():
            raise ValueError("a probe needs finite features, and some are infinite or not a number")


def _directions(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=1)

"""Linear classifiers of frozen features: scikit-learn's exact solvers, or batches where they end.

A penalty is chosen by cross-validation on the training clips, which deals whole sources to its
folds. A classifier gives a score for each clip and class; a class that it never saw has the lowest
score that there is.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from xkd_core.classifiers.probes import Loss, fit_linear_layers, source_folds

Array = NDArray[Any]
Kind = Literal["linear", "svm"]
UNSEEN = -1e9
"""The score of a class that the training clips do not have."""
_MAX_ITERATIONS = 300
_SVM_ITERATIONS = 1000
_NUM_FOLDS = 5
_ROWS_AT_ONCE = 8192
BYTES_A_NUMBER = 16
"""Of a feature in float64, twice: the solver's copy beside the standardized one."""


@dataclass(frozen=True)
class TrainingRows:
    """What a classifier learns from."""

    features: Array
    """(clips, D), float32."""
    targets: Array
    """Booleans (clips, classes); one of a row is set unless there are several labels."""
    sources: Array
    """Number of the source of each clip."""
    is_multilabel: bool = False


@dataclass(frozen=True)
class Fitted:
    """The scores of the clips asked for, and the penalty that cross-validation chose."""

    scores: Array
    """(clips, classes), float64: log-odds of `linear`, decision values of `svm`."""
    penalty: float | None
    is_exact: bool
    """False for a layer trained on batches."""
    is_probability: bool = False
    """Whether scores are shares of a class, as votes are, and not log-odds."""
    candidates: tuple[Array, ...] = ()
    """Scores by every penalty or epoch, if the best on the test clips is wanted too."""


def fit_and_score(
    kind: Kind,
    rows: TrainingRows,
    test: Array,
    penalties: Sequence[float],
    *,
    seed: int,
    max_solver_gb: float,
    device: torch.device | None = None,
    with_candidates: bool = False,
) -> Fitted:
    """Fits a classifier to the training clips and scores the test clips.

    Args:
        kind: Logistic regression on standardized features, or a linear SVM on the features as they
            are (XKD, section 5).
        rows: The training clips.
        test: Features of the clips to score.
        penalties: Candidates, as weights of |W|^2 / 2: 1 / C of scikit-learn.
        seed: Seed of the folds.
        max_solver_gb: Memory that scikit-learn may need; larger features train a layer on batches.
        device: Where that layer trains.
        with_candidates: Whether to return the scores by every penalty too.
    """
    exact = rows.features.size * BYTES_A_NUMBER <= max_solver_gb * 1e9
    along = (
        _exact_path(kind, rows.is_multilabel)
        if exact
        else _batch_path(kind, rows.is_multilabel, seed, device)
    )
    ordered = sorted(penalties, reverse=True)
    best = len(ordered) - 1
    if len(ordered) > 1:
        best = int(np.argmin(_held_out_losses(kind, rows, ordered, seed, along)))
    # The path starts at the strongest penalty, from which each solution begins the next.
    every = tuple(along(rows, test, ordered if with_candidates else ordered[: best + 1]))
    return Fitted(every[best], ordered[best], exact, candidates=every if with_candidates else ())


_Path = Callable[[TrainingRows, Array, Sequence[float]], Iterator[Array]]
"""Yields the scores of the test clips for each penalty, from the strongest on."""


def _held_out_losses(
    kind: Kind, rows: TrainingRows, penalties: Sequence[float], seed: int, along: _Path
) -> Array:
    """Sums the losses of held-out clips by penalty; of an SVM the mistakes, else cross-entropy."""
    labels = torch.from_numpy(rows.targets.argmax(axis=1))
    if rows.is_multilabel:
        labels = torch.zeros_like(labels)
    folds = source_folds(labels, torch.from_numpy(rows.sources), _NUM_FOLDS, seed).numpy()
    losses = np.zeros(len(penalties))
    for number in range(_NUM_FOLDS):
        held = folds == number
        seen = rows.targets[~held].any(axis=0)
        if held.all() or not held.any() or (seen.sum() < 2 and not rows.is_multilabel):
            continue  # fewer sources than folds
        part = TrainingRows(
            rows.features[~held], rows.targets[~held], rows.sources[~held], rows.is_multilabel
        )
        for index, scores in enumerate(along(part, rows.features[held], penalties)):
            losses[index] += _loss(kind, scores, rows.targets[held], seen, rows.is_multilabel)
    return losses


def _loss(kind: Kind, scores: Array, targets: Array, seen: Array, is_multilabel: bool) -> float:
    """The loss of clips whose classes the classifier knows; it cannot be right on others."""
    if is_multilabel:
        sign = np.where(targets, 1.0, -1.0)[:, seen]
        margins = sign * scores[:, seen]
        if kind == "svm":
            return float(np.maximum(0.0, 1.0 - margins).sum())
        return float(np.logaddexp(0.0, -margins).sum())
    known = targets[:, seen].any(axis=1)
    scores, truth = scores[known][:, seen], targets[known][:, seen].argmax(axis=1)
    if kind == "svm":
        return float((scores.argmax(axis=1) != truth).sum())
    logs = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return float(-logs[np.arange(len(truth)), truth].sum())


def _exact_path(kind: Kind, is_multilabel: bool) -> _Path:
    # Here, since workers that fit nothing would import it for half a second too.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.preprocessing import StandardScaler

    def along(rows: TrainingRows, test: Array, penalties: Sequence[float]) -> Iterator[Array]:
        train, asked = rows.features.astype(np.float64), test.astype(np.float64)
        if kind == "linear":
            scaler = StandardScaler(copy=False)
            for begin in range(0, len(train), _ROWS_AT_ONCE):  # it copies what it fits, twice
                scaler.partial_fit(train[begin : begin + _ROWS_AT_ONCE])
            train, asked = scaler.transform(train), scaler.transform(asked)
        seen = np.flatnonzero(rows.targets.any(axis=0) & ~(rows.targets.all(axis=0)))
        classifier: Any = None
        for penalty in penalties:
            if classifier is None or is_multilabel:
                classifier = _classifier(kind)
            classifier.C = 1.0 / penalty
            if is_multilabel:
                classifier = OneVsRestClassifier(classifier)
            known = rows.targets[:, seen]
            labels = known.astype(int) if is_multilabel else known.argmax(axis=1)
            with warnings.catch_warnings():
                # The best of the iterations allowed is the score; separable classes with a weak
                # penalty converge slowly and score no better.
                warnings.simplefilter("ignore", ConvergenceWarning)
                classifier.fit(train, labels)
            yield _spread_out(classifier.decision_function(asked), seen, rows.targets.shape[1])

    return along


def _classifier(kind: Kind) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    if kind == "svm":
        return LinearSVC(max_iter=_SVM_ITERATIONS, random_state=0)
    return LogisticRegression(max_iter=_MAX_ITERATIONS, warm_start=True, tol=1e-5)


def _spread_out(values: Array, seen: Array, num_classes: int) -> Array:
    """Puts the scores of the classes that were seen into columns of all classes."""
    if values.ndim == 1 and len(seen) == 2:  # of two classes, scikit-learn scores the second
        values = np.stack([-values / 2, values / 2], axis=1)
    scores = np.full((len(values), num_classes), UNSEEN)
    scores[:, seen] = values.reshape(len(values), -1)
    return scores


def _batch_path(kind: Kind, is_multilabel: bool, seed: int, device: torch.device | None) -> _Path:
    loss: Loss = "squared_hinge" if kind == "svm" else "sigmoid" if is_multilabel else "softmax"

    def along(rows: TrainingRows, test: Array, penalties: Sequence[float]) -> Iterator[Array]:
        layers = fit_linear_layers(
            torch.from_numpy(rows.features),
            torch.from_numpy(rows.targets).float(),
            l2=penalties,
            loss=loss,
            seed=seed,
            device=device,
        )
        unseen = ~rows.targets.any(axis=0)
        for logits in layers.logits(torch.from_numpy(test)).double().numpy():
            yield np.where(unseen, UNSEEN, logits)

    return along

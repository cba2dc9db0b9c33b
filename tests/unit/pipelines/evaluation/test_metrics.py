"""Figures are scikit-learn's, and weights count clips as often as repeating them would."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    roc_auc_score,
    top_k_accuracy_score,
)

from pipelines.evaluation import metrics

RNG = np.random.default_rng(0)
ALL = np.ones((1, 60))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k(k):
    scores, truth = RNG.random((60, 7)), RNG.integers(0, 7, 60)
    expected = top_k_accuracy_score(truth, scores, k=k, labels=range(7))
    assert metrics.top_k(scores, truth, k).mean() == pytest.approx(expected)


def test_classes_that_score_alike_are_ranked_as_argmax_does():
    scores, truth = np.zeros((3, 4)), np.array([0, 1, 3])
    assert metrics.top_k(scores, truth, 1).tolist() == [1, 0, 0]
    assert metrics.top_k(scores, truth, 2).tolist() == [1, 1, 0]


def test_confusion_and_classes():
    truth, named = RNG.integers(0, 4, 50), RNG.integers(0, 4, 50)
    assert (
        metrics.confusion(named, truth, 5) == confusion_matrix(truth, named, labels=range(5))
    ).all()
    shares = metrics.per_class((named == truth).astype(float), truth, 5)
    assert shares[4] is None
    assert shares[2] == pytest.approx((named[truth == 2] == 2).mean())


@pytest.mark.parametrize("digits", [8, 1])  # of one digit, many scores are ties
def test_several_labels(digits):
    scores = RNG.random((60, 6)).round(digits)
    targets = RNG.random((60, 6)) < 0.3
    precision = metrics.average_precision(scores, targets)(ALL)[0]
    area = metrics.area_under_curve(scores, targets)(ALL)[0]
    assert precision == pytest.approx(average_precision_score(targets, scores, average="macro"))
    assert area == pytest.approx(roc_auc_score(targets, scores, average="macro"))
    expected = np.sqrt(2) * norm.ppf(area)
    assert metrics.d_prime(scores, targets)(ALL)[0] == pytest.approx(expected)


def test_weights_are_repetitions():
    scores, targets = RNG.random((60, 3)).round(1), RNG.random((60, 3)) < 0.4
    weights = RNG.integers(0, 4, (1, 60))
    again = np.repeat(np.arange(60), weights[0])
    for statistic in (metrics.average_precision, metrics.area_under_curve):
        repeated = statistic(scores[again], targets[again])(np.ones((1, len(again))))
        assert statistic(scores, targets)(weights) == pytest.approx(repeated)


def test_classes_without_a_clip_or_with_every_clip_are_left_out():
    scores, targets = RNG.random((60, 3)), RNG.random((60, 3)) < 0.4
    more = np.concatenate([targets, np.zeros((60, 1), bool), np.ones((60, 1), bool)], axis=1)
    wide = np.concatenate([scores, RNG.random((60, 2))], axis=1)
    for statistic in (metrics.average_precision, metrics.area_under_curve):
        assert statistic(wide, more)(ALL) == pytest.approx(statistic(scores, targets)(ALL))
    assert np.isnan(metrics.area_under_curve(scores, np.zeros((60, 3)))(ALL)).all()

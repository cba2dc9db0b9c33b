"""Probes are the textbook's, deterministic, and choose their penalty without the test data."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from xkd_core.probes import (
    accuracy,
    fit_linear_probe,
    knn_predict,
    per_class_accuracy,
    stratified_folds,
)

L2 = (1e-2, 1.0, 100.0)


def make_classes(num_rows, *, spread=1.0, num_classes=3, width=6, seed=0):
    """Rows around a corner per class, on badly scaled axes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_rows) % num_classes
    rows = torch.eye(width)[labels] + spread * torch.randn(num_rows, width, generator=generator)
    return rows * 10.0 ** torch.arange(-2, width - 2) + 5.0, labels


def fit(train, labels, num_classes=3, l2=L2, **settings):
    return fit_linear_probe(train, labels, num_classes=num_classes, l2=l2, seed=0, **settings)


@pytest.mark.parametrize("l2", [0.1, 10.0])
def test_probe_is_scikit_learns_logistic_regression(l2):
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, labels = make_classes(90)
    probe = fit(train, labels, l2=[l2])
    rows = train.double().numpy()
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    reference = linear_model.LogisticRegression(C=1 / l2, tol=1e-10, max_iter=10_000)
    reference.fit(rows, labels.numpy())
    np.testing.assert_allclose(probe.weight, reference.coef_.T, atol=1e-4)
    expected = torch.from_numpy(reference.predict_proba(rows))
    torch.testing.assert_close(F.softmax(probe.logits(train), dim=1), expected, atol=1e-4, rtol=0)


def test_probe_generalises_where_classes_can_be_told_apart():
    train, labels = make_classes(120, spread=0.2)
    test, true = make_classes(60, spread=0.2, seed=1)
    assert accuracy(fit(train, labels).predict(test), true) > 0.95


def test_probe_of_noise_is_strongly_penalised_and_tells_nothing():
    labels = torch.arange(90) % 3
    probe = fit(torch.randn(90, 60), labels, l2=(1e-3, 1e4))
    assert probe.l2 == 1e4
    assert accuracy(probe.predict(torch.randn(90, 60)), labels) < 0.55


def test_the_penalty_is_that_of_the_smallest_held_out_loss():
    train, labels = make_classes(50)
    folds = stratified_folds(labels, 5, 0)
    loss = {}
    for l2 in L2:
        loss[l2] = 0.0
        for fold in range(5):
            kept = folds != fold
            probe = fit(train[kept], labels[kept], l2=[l2])
            loss[l2] += F.cross_entropy(
                probe.logits(train[~kept]), labels[~kept], reduction="sum"
            ).item()
    assert fit(train, labels).l2 == min(loss, key=loss.__getitem__)


def test_probe_is_the_same_every_time_and_whatever_the_order_of_penalties():
    train, labels = make_classes(60)
    first, second = fit(train, labels), fit(train, labels, l2=L2[::-1])
    assert first.l2 == second.l2
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_features_are_standardised():
    train, labels = make_classes(60)
    scales = 10.0 ** torch.arange(6) * 7
    test, _ = make_classes(30, seed=1)
    probe, other = fit(train, labels), fit(train * scales - 3.0, labels)
    torch.testing.assert_close(
        probe.logits(test), other.logits(test * scales - 3.0), atol=1e-3, rtol=1e-3
    )


def test_constant_features_change_nothing():
    train, labels = make_classes(60)
    constant = torch.full((60, 1), 0.1) + 1e-9 * torch.randn(60, 1)
    with_constant = fit(torch.cat([train, constant], dim=1), labels)
    torch.testing.assert_close(with_constant.weight[:6], fit(train, labels).weight)


def test_probe_of_features_that_are_all_alike_predicts_the_most_frequent_class():
    labels = torch.tensor([0, 1, 1, 1, 2])
    probe = fit(torch.ones(5, 4), labels)
    assert probe.predict(torch.ones(2, 4)).tolist() == [1, 1]


@pytest.mark.parametrize("labels", [[0], [2, 2], [0, 1], [0, 0, 0, 0, 0, 0, 1]])
def test_tiny_and_one_sided_training_sets_work(labels):
    probe = fit(torch.randn(len(labels), 4), torch.tensor(labels))
    assert probe.weight.isfinite().all()
    assert probe.predict(torch.randn(3, 4)).shape == (3,)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(2, 6), st.integers(0, 3))
def test_folds_hold_equal_parts_of_each_class(labels, num_folds, seed):
    labels = torch.tensor(labels)
    folds = stratified_folds(labels, num_folds, seed)
    assert torch.equal(folds, stratified_folds(labels, num_folds, seed))
    for rows in [folds, *(folds[labels == label] for label in labels.unique())]:
        counts = rows.bincount(minlength=num_folds)
        assert counts.max() - counts.min() <= 1


def test_nearest_neighbours_vote_by_similarity():
    train, labels = torch.randn(40, 5), torch.arange(40) % 4
    test = torch.randn(12, 5)
    predicted = knn_predict(train, labels, test, num_classes=4, neighbors=7, temperature=0.1)
    for row, prediction in zip(test, predicted, strict=True):
        cosine = F.cosine_similarity(row, train).double()
        nearest = cosine.argsort(descending=True)[:7]
        votes = [cosine[n].div(0.1).exp() * F.one_hot(labels[n], 4) for n in nearest]
        assert int(sum(votes).argmax()) == prediction


def test_one_neighbour_finds_itself_whatever_its_length():
    train, labels = torch.randn(30, 8), torch.arange(30) % 5
    for temperature in (1e-4, 0.07, 10.0):
        found = knn_predict(
            train, labels, 3.0 * train, num_classes=5, neighbors=1, temperature=temperature
        )
        assert torch.equal(found, labels)


def test_accuracy_per_class_is_nan_where_a_class_is_absent():
    true, predicted = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([0, 1, 2, 2, 0])
    assert accuracy(predicted, true) == pytest.approx(0.6)
    shares = per_class_accuracy(predicted, true, 4)
    assert shares[0] == pytest.approx(1 / 2)
    assert shares[2] == pytest.approx(2 / 3)
    assert math.isnan(shares[1])
    assert math.isnan(shares[3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l2": ()}, r"l2 \(\(\)\) must hold penalties above 0"),
        ({"l2": (1.0, 0.0)}, r"l2 \(\(1\.0, 0\.0\)\) must hold"),
        ({"num_folds": 1}, r"num_folds \(1\) must be 2 or more"),
        ({"num_classes": 2}, r"labels \(0 to 2\) must be 0 to 1"),
        ({"train": torch.full((9, 6), math.nan)}, "finite features"),
        ({"train": torch.zeros(0, 6), "labels": torch.zeros(0).long()}, "one training row"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    train, labels = make_classes(9)
    with pytest.raises(ValueError, match=message):
        fit(**{"train": train, "labels": labels, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neighbors": 10}, r"neighbors \(10\) must be 1 to 9"),
        ({"neighbors": 0}, r"neighbors \(0\) must be 1 to 9"),
        ({"temperature": 0.0}, r"temperature \(0\) must be above 0"),
    ],
)
def test_impossible_votes_are_refused(change, message):
    train, labels = make_classes(9)
    settings = {"num_classes": 3, "neighbors": 3, "temperature": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        knn_predict(train, labels, train, **settings)


def test_measures_of_nothing_are_refused():
    nothing = torch.zeros(0).long()
    with pytest.raises(ValueError, match="one row or more"):
        accuracy(nothing, nothing)

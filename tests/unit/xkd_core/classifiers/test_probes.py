"""Probes are the textbook's, deterministic, and choose their penalty without the test data."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from xkd_core.classifiers.probes import (
    accuracy,
    fit_linear_layers,
    knn_predict,
    one_hot,
    per_class_accuracy,
    source_folds,
    stratified_folds,
)


def make_classes(num_rows, *, spread=1.0, num_classes=3, width=6, seed=0):
    """Rows around a corner per class, on badly scaled axes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_rows) % num_classes
    rows = torch.eye(width)[labels] + spread * torch.randn(num_rows, width, generator=generator)
    return rows * 10.0 ** torch.arange(-2, width - 2) + 5.0, labels


def fit(train, labels, l2=(1.0,), **settings):
    return fit_linear_layers(train, one_hot(labels, 3), l2=l2, **settings)


@pytest.mark.parametrize("is_multilabel", [False, True])
def test_layers_come_near_the_optimum_of_each_penalty(is_multilabel):
    """The gradient of the loss of all rows, which is 0 at the optimum, is small."""
    train, labels = make_classes(300)
    targets = one_hot(labels, 3)
    penalties = (3.0, 100.0)
    layers = fit_linear_layers(
        train, targets, l2=penalties, loss="sigmoid" if is_multilabel else "softmax"
    )
    scaled = (train - layers.mean) / layers.std
    for index, l2 in enumerate(penalties):
        logits = scaled @ layers.weight[index] + layers.bias[index]
        shares = logits.sigmoid() if is_multilabel else logits.softmax(dim=1)
        gradient = scaled.T @ (shares - targets) + l2 * layers.weight[index]
        assert gradient.abs().max() / len(train) < 2e-3


def test_layers_tell_classes_apart_and_repeat():
    train, labels = make_classes(120, spread=0.2)
    test, true = make_classes(60, spread=0.2, seed=1)
    first, second = (fit(train, labels, batch_size=32, min_steps=200) for _ in range(2))
    assert accuracy(first.logits(test)[0].argmax(dim=1), true) > 0.95
    assert torch.equal(first.weight, second.weight)


def test_a_constant_feature_changes_nothing():
    train, labels = make_classes(60)
    constant = torch.full((60, 1), 0.1) + 1e-9 * torch.randn(60, 1)
    with_constant = fit(torch.cat([train, constant], dim=1), labels, min_steps=200)
    without = fit(train, labels, min_steps=200)
    assert without.weight.abs().max() > 0.1
    torch.testing.assert_close(with_constant.weight[:, :6], without.weight, atol=1e-4, rtol=1e-4)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=60),
    st.integers(2, 6),
)
def test_folds_keep_a_source_whole_and_classes_even(rows, num_folds):
    sources = torch.tensor([source for _, source in rows])
    class_of = {source: label for label, source in reversed(rows)}
    labels = torch.tensor([class_of[source] for _, source in rows])
    folds = source_folds(labels, sources, num_folds, 0)
    fold_of = dict(zip(sources.tolist(), folds.tolist(), strict=True))
    assert all(fold_of[s] == f for s, f in zip(sources.tolist(), folds.tolist(), strict=True))
    for label in set(class_of.values()):
        counts = [0] * num_folds
        for source, fold in fold_of.items():
            counts[fold] += class_of[source] == label
        assert max(counts) - min(counts) <= 1


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
        ({"train": torch.full((9, 6), math.nan)}, "finite features"),
        ({"train": torch.zeros(0, 6), "labels": torch.zeros(0).long()}, "one training row"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    train, labels = make_classes(9)
    with pytest.raises(ValueError, match=message):
        fit(**{"train": train, "labels": labels, **change})


def test_a_label_that_is_no_class_and_a_single_fold_are_refused():
    with pytest.raises(ValueError, match=r"labels \(0 to 2\) must be 0 to 1"):
        one_hot(torch.tensor([0, 2]), 2)
    with pytest.raises(ValueError, match=r"num_folds \(1\) must be 2 or more"):
        stratified_folds(torch.zeros(3).long(), 1, 0)


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

"""Linear classifiers are scikit-learn's, and their penalties are chosen without the test clips."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from pipelines.evaluation.probes.solvers import UNSEEN, TrainingRows, fit_and_score

PENALTIES = (1e-3, 1e-1, 1.0, 10.0, 100.0)


def clips(num_clips, *, spread=1.0, num_classes=3, width=6, seed=0, segments=1):
    rng = np.random.default_rng(seed)
    sources = np.arange(num_clips) // segments
    labels = sources % num_classes
    rows = np.eye(width)[labels] + spread * rng.normal(size=(num_clips, width))
    features = (rows * 10.0 ** np.arange(-2, width - 2) + 5.0).astype(np.float32)
    return TrainingRows(features, np.eye(num_classes, dtype=bool)[labels], sources)


def fit(kind, rows, test, penalties=PENALTIES, **settings):
    values = {"seed": 0, "max_solver_gb": 1.0, **settings}
    return fit_and_score(kind, rows, test, penalties, **values)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("kind", ["linear", "svm"])
def test_classifiers_are_scikit_learns(kind, num_classes):
    rows, test = clips(90, num_classes=num_classes), clips(30, seed=1).features
    labels = rows.targets.argmax(axis=1)
    if kind == "linear":
        scaler = StandardScaler().fit(rows.features)
        plain = LogisticRegression(C=0.1, tol=1e-8, max_iter=10_000)
        plain.fit(scaler.transform(rows.features), labels)
        expected = plain.predict(scaler.transform(test))
    else:
        plain = LinearSVC(C=0.1, max_iter=1000, random_state=0).fit(rows.features, labels)
        expected = plain.predict(test)
    found = fit(kind, rows, test, [10.0])
    assert (found.scores.argmax(axis=1) == expected).all()
    assert found.penalty == 10.0
    assert found.is_exact


def test_the_penalty_suits_the_noise():
    noise = clips(90, spread=50.0)
    assert fit("linear", noise, noise.features).penalty == 100.0
    clear = clips(90, spread=0.1)
    assert fit("linear", clear, clear.features).penalty < 10.0


def test_segments_of_a_source_do_not_judge_what_was_fitted_to_their_source():
    """Each source is ten near copies of noise: across segments anything seems to be learned."""
    rng = np.random.default_rng(0)
    sources = np.repeat(np.arange(30), 10)
    features = rng.normal(size=(30, 40))[sources] + 1e-3 * rng.normal(size=(300, 40))
    targets = np.eye(3, dtype=bool)[sources % 3]
    apart = TrainingRows(features.astype(np.float32), targets, np.arange(300))
    whole = TrainingRows(apart.features, targets, sources)
    penalties = (1e-3, 1e3)
    assert fit("linear", apart, apart.features, penalties).penalty == 1e-3
    assert fit("linear", whole, whole.features, penalties).penalty == 1e3


@pytest.mark.parametrize("kind", ["linear", "svm"])
def test_a_layer_on_batches_scores_as_the_solver_does(kind):
    """On features of one scale: the layer standardizes them, the solver of the SVM does not."""
    rows, test = (
        replace(r, features=StandardScaler().fit_transform(r.features))
        for r in (clips(600), clips(300, seed=1))
    )
    exact = fit(kind, rows, test.features, [1.0])
    batches = fit(kind, rows, test.features, [1.0], max_solver_gb=1e-9)
    assert not batches.is_exact
    same = exact.scores.argmax(axis=1) == batches.scores.argmax(axis=1)
    assert same.mean() > 0.97


@pytest.mark.parametrize("max_solver_gb", [1.0, 1e-9])
def test_a_class_without_a_training_clip_is_never_named(max_solver_gb):
    rows = clips(60)
    targets = np.concatenate([rows.targets, np.zeros((60, 1), bool)], axis=1)
    rows = TrainingRows(rows.features, targets, rows.sources)
    found = fit("linear", rows, rows.features, max_solver_gb=max_solver_gb)
    assert (found.scores[:, 3] == UNSEEN).all()
    assert (found.scores[:, :3] > UNSEEN / 2).all()


@pytest.mark.parametrize("kind", ["linear", "svm"])
@pytest.mark.parametrize("max_solver_gb", [1.0, 1e-9])
def test_several_labels_a_clip(kind, max_solver_gb):
    rows = clips(120, spread=0.3)
    targets = np.stack([rows.targets[:, 0], rows.targets[:, 0] | rows.targets[:, 1]], axis=1)
    rows = TrainingRows(rows.features, targets, rows.sources, is_multilabel=True)
    found = fit(kind, rows, rows.features, [0.1, 10.0], max_solver_gb=max_solver_gb)
    assert ((found.scores > 0) == targets).mean() > 0.9


@pytest.mark.parametrize("kind", ["linear", "svm"])
@pytest.mark.parametrize("num_clips", [3, 4, 7])
def test_a_handful_of_clips_works(kind, num_clips):
    rows = clips(num_clips)
    assert np.isfinite(fit(kind, rows, rows.features).scores).all()

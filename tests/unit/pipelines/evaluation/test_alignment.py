"""Features of two encoders in a common space: what their training pairs share."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.cross_decomposition import CCA

from pipelines.config.evaluate import EvaluateSettings
from pipelines.evaluation import alignment
from pipelines.evaluation.alignment import aligned, canonical_maps, compared
from pipelines.evaluation.outcomes import Outcomes, paired_retrieval
from pipelines.evaluation.probes.classifiers import score, score_with_outcomes
from tests.unit.pipelines.evaluation.probes.test_classifiers import features

SETTINGS = EvaluateSettings(measures=("retrieval",), retrieval_sizes=())


def pairs(count=400, shared=3, seed=0):
    """Two sides of different widths that share a few directions, mixed with noise of their own."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9)
    common = rng.normal(size=(count, shared))
    sides = []
    for width in (10, 7):
        mixed = mixing.normal(size=(shared + width, width))
        own = 0.5 * rng.normal(size=(count, width))
        sides.append((np.concatenate([common, own], axis=1) @ mixed + 5).astype(np.float32))
    return sides


def test_without_ridge_the_correlations_are_scikit_learns(monkeypatch):
    monkeypatch.setattr(alignment, "_RIDGE", 0.0)
    monkeypatch.setattr(alignment, "_ROWS_AT_ONCE", 150)  # several parts
    sides = pairs()
    found = [
        (side - mean) @ matrix
        for side, (mean, matrix) in zip(sides, canonical_maps(*sides), strict=True)
    ]
    theirs = CCA(n_components=3, max_iter=5000, tol=1e-9).fit(*sides).transform(*sides)
    for number in range(3):
        ours = np.corrcoef(found[0][:, number], found[1][:, number])[0, 1]
        other = np.corrcoef(theirs[0][:, number], theirs[1][:, number])[0, 1]
        assert ours == pytest.approx(other, abs=1e-4)


def with_sides(first, second, *, train):
    """Features of as many clips whose trained networks are these; the rest are test clips."""
    count = len(first)
    base = features(num_clips=count)
    is_train = np.arange(count) < train
    return replace(
        base,
        matrices={"video/trained": first, "audio/trained": second},
        is_train=is_train,
        is_test=~is_train,
        retrieval_clips=np.flatnonzero(~is_train),
        retrieval={},
    )


def test_held_out_clips_find_their_own_side_without_heads_and_others_guess():
    together = with_sides(*pairs(240), train=160)
    found = score(together, SETTINGS).retrieval["audio_to_video"]["trained"]
    assert found.num_clips == 80
    low = found.figures["recall@5"].low
    assert low is not None
    assert low > 2 * found.chance["recall@5"]
    first, _ = pairs(240)
    _, second = pairs(240, seed=1)
    apart = score(with_sides(first, second, train=160), SETTINGS)
    figure = apart.retrieval["audio_to_video"]["trained"].figures["recall@5"]
    assert figure.low is not None
    assert figure.low < 5 / 80


def test_clips_without_a_side_are_no_pairs_and_constant_features_no_fault():
    first, second = pairs(240)
    first[:20] = np.nan
    second[:, 2] = 1.0
    found = aligned(with_sides(first, second, train=160))
    assert all(np.isfinite(rows).all() for rows in found.values())


def test_few_pairs_leave_the_outputs_of_heads():
    few = with_sides(*pairs(60), train=12)
    assert compared(few, SETTINGS) == "heads"
    assert score(few, SETTINGS).retrieval == {}
    assert compared(with_sides(*pairs(60), train=30), SETTINGS) == "features"


def test_clips_that_align_the_features_do_not_score_them():
    together = with_sides(*pairs(60), train=30)
    alone = replace(together, is_test=np.zeros(60, bool), is_train=np.ones(60, bool))
    assert compared(alone, SETTINGS) == "heads"
    assert score(alone, SETTINGS).retrieval == {}


def test_features_and_heads_are_not_compared_with_each_other(tmp_path):
    ours, theirs = (
        score_with_outcomes(features(), SETTINGS.model_copy(update={"retrieval_of": of}))[1]
        for of in ("features", "heads")
    )
    theirs.write(tmp_path / "outcomes.npz")
    theirs = Outcomes.read(tmp_path / "outcomes.npz")
    assert theirs.retrieval_of == "heads"
    with pytest.raises(KeyError, match="retrieval_of"):
        paired_retrieval(ours, theirs)

"""Features are held once, and tasks of all folds find what one process finds."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import ray

from pipelines.config.evaluate import EvaluateSettings
from pipelines.errors import UserError
from pipelines.evaluation.choice import Fold
from pipelines.evaluation.embedder import Embedded
from pipelines.evaluation.gathered import Gathered
from pipelines.evaluation.probes.fit_tasks import StoredFeatures, _needs
from pipelines.evaluation.probes.fits import Fit
from pipelines.evaluation.probes.folds import score_folds
from tests.unit.pipelines.evaluation.probes.test_classifiers import features

SETTINGS = EvaluateSettings(
    measures=("knn", "linear", "attentive", "layers", "retrieval"),
    fusion=("both", "late", "missing"),
    attentive_steps=10,
)


def with_folds():
    found = features(num_clips=60)
    halves = found.sources % 2
    folds = tuple(Fold(str(n), halves != n, halves == n) for n in range(2))
    return replace(found, folds=folds)


def streamed(found):
    """What a task yields, as `features.extract` does."""

    @ray.remote(num_returns="streaming")
    def give(found):
        large = found.large()
        yield found.with_large({}), list(large)
        for key in list(large):
            yield large.pop(key)

    return give.remote(found)


@pytest.mark.ray
def test_tasks_of_all_folds_find_what_one_process_finds(local_ray):
    found = with_folds()
    stored = StoredFeatures.receive(streamed(found))
    for key, array in found.large().items():
        np.testing.assert_array_equal(stored.features.large()[key], array)
    here, outcomes = score_folds(found, SETTINGS)
    there, others = score_folds(stored.features, SETTINGS, None, stored.fit_all)
    assert here.figures() == there.figures()
    assert here.gains == there.gains
    assert {"both", "late", "both_video_only"} <= there.modalities.keys()
    for path, values in outcomes.values.items():
        np.testing.assert_array_equal(values, others.values[path])


@pytest.mark.ray
def test_a_mistake_of_the_extraction_is_one_line(local_ray):
    @ray.remote(num_returns="streaming")
    def refuse():
        raise UserError("cache (x) is damaged: delete it")
        yield

    with pytest.raises(UserError, match=r"^cache \(x\) is damaged: delete it$"):
        StoredFeatures.receive(refuse.remote())


@pytest.mark.parametrize(
    ("fit", "wanted"),
    [
        (Fit("trained", "video", "knn"), {("matrices", "video/trained")}),
        (Fit("trained", "audio", "layers"), {("layers", "audio/trained")}),
        (Fit("untrained", "audio", "attentive"), {("tokens", "audio/untrained")}),
        (
            Fit("trained", "both", "svm"),
            {("matrices", "video/trained"), ("matrices", "audio/trained")},
        ),
    ],
)
def test_a_task_gets_the_arrays_of_its_classifier_alone(fit, wanted):
    assert {key for key in features().large() if _needs(key, fit)} == wanted


def test_features_are_held_once_while_they_are_gathered():
    num_clips, width, shard = 8000, 64, 500
    rows = np.random.default_rng(0).normal(size=(shard, width)).astype(np.float32)
    tracemalloc.start()
    try:
        gathered = Gathered(EvaluateSettings(), np.arange(num_clips), num_clips)
        for begin in range(0, num_clips, shard):
            one = Embedded(np.arange(shard), rows + begin, None, None, None)
            gathered.add("video/trained", one, begin, shard, np.zeros(0, int))
        found = gathered.features()["matrices"]["video/trained"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.6 * found.nbytes  # it and what one shard of 16 takes
    np.testing.assert_allclose(found[shard + 3], rows[3] + shard)

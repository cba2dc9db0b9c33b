"""Every measure of every subject, one label or several, and clips that cannot be scored."""

from dataclasses import replace

import numpy as np
import pytest

from pipelines.config.evaluate import EvaluateSettings
from pipelines.evaluation.features import Features
from pipelines.evaluation.outcomes import Outcomes, paired, paired_retrieval
from pipelines.evaluation.probes.classifiers import score, score_with_outcomes, side_scores

EVERY = EvaluateSettings(
    measures=("knn", "linear", "svm", "attentive", "layers", "retrieval"),
    attentive_steps=60,
    retrieval_of="heads",
)


def features(num_clips=160, num_classes=4, noise=0.2, untrained=20.0):
    """Video and audio each tell half of the class apart; a source has two clips."""
    rng = np.random.default_rng(0)
    sources = np.arange(num_clips) // 2
    labels = sources % num_classes
    halves = {"video": labels // 2, "audio": labels % 2}
    matrices, tokens, heads = {}, {}, {}
    shared = rng.normal(size=(num_clips, 8))
    for side, half in halves.items():
        for network, spread in (("trained", noise), ("untrained", untrained)):
            path = f"{side}/{network}"
            clean = np.eye(8)[half]
            matrices[path] = (clean + spread * rng.normal(size=clean.shape)).astype(np.float32)
            tokens[path] = np.repeat(matrices[path][:, None], 3, axis=1).astype(np.float16)
            heads[path] = shared + spread * rng.normal(size=shared.shape)
    is_test = sources % 3 == 0
    first = np.flatnonzero(is_test & (np.arange(num_clips) % 2 == 0))
    return Features(
        clip_ids=tuple(f"{i:03}" for i in range(num_clips)),
        rows=np.arange(num_clips),
        classes=tuple("abcdefgh"[:num_classes]),
        labels=labels,
        targets=np.eye(num_classes, dtype=bool)[labels],
        sources=sources,
        is_train=~is_test,
        is_test=is_test,
        matrices=matrices,
        has={side: np.ones(num_clips, bool) for side in halves},
        retrieval_clips=first,
        retrieval={path: head[first] for path, head in heads.items()},
        layers={path: np.tile(matrix, 2) for path, matrix in matrices.items()},
        tokens=tokens,
    )


def test_every_measure_scores_every_subject_and_both_together_know_more():
    found = score(features(), EVERY)
    assert set(found.modalities) == {"video", "audio", "both", "late"}
    for subject, networks in found.modalities.items():
        expected = {"knn", "linear", "svm", "attentive", "layers"}
        assert set(networks["trained"].measures) == expected - (
            {"attentive"} if subject == "both" else set()
        )
        for measure, one in networks["trained"].measures.items():
            assert one.score.low <= one.score.value <= one.score.high
            assert found.gains[f"{subject}/{measure}"].value == pytest.approx(
                one.score.value - networks["untrained"].accuracy[measure]
            )
    best = {subject: found.modalities[subject]["trained"].accuracy for subject in found.modalities}
    for together, measure in [("both", "linear"), ("both", "svm"), ("late", "linear")]:
        assert best[together][measure] > max(best[s][measure] for s in ("video", "audio")) + 0.1
    assert found.gains["both/linear"].is_above_zero
    assert found.retrieval["audio_to_video"]["trained"].num_clips == 27
    assert not found.notes
    assert sum(map(sum, found.modalities["both"]["trained"].measures["knn"].confusion)) == 54
    assert found.modalities["both"]["trained"].num_sources == 27
    assert side_scores(found)["audio/retrieval"] > 0.5


def test_several_labels_a_clip():
    one = features()
    targets = one.targets.copy()
    targets[:, 0] |= targets[:, 1]
    found = score(replace(one, targets=targets), EVERY)
    for networks in found.modalities.values():
        for measure in networks["trained"].measures.values():
            assert list(measure.figures) == ["map", "auc", "d_prime"]
    trained = found.modalities["both"]["trained"]
    assert trained.measures["linear"].figures["map"].value > 0.85
    assert found.gains["both/linear"].is_above_zero


def test_clips_without_label_features_or_class_are_counted_and_left_out():
    one = features()
    targets, train = one.targets.copy(), one.is_train
    targets[np.flatnonzero(one.is_test)[:3]] = False
    targets[train & one.targets[:, 3]] = np.eye(4, dtype=bool)[2]
    broken = one.matrices["video/trained"].copy()
    broken[np.flatnonzero(train)[:5]] = np.inf
    found = score(
        replace(one, targets=targets, matrices=one.matrices | {"video/trained": broken}),
        EvaluateSettings(measures=("knn", "linear")),
    )
    unlabelled, not_finite, unseen = found.notes
    assert unlabelled == "3 of 54 test clips without a label: left out"
    assert not_finite == "video/trained: 5 clips with features that are not finite: left out"
    assert "of classes without a training clip (d): counted as wrong" in unseen
    trained = found.modalities["video"]["trained"]
    assert trained.num_test == 51
    assert trained.measures["linear"].per_class[3] == 0.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: {"targets": f.targets & f.is_train[:, None]}, "no labelled clip is held out"),
        (lambda f: {"targets": f.targets & f.is_test[:, None]}, "have 0 class"),
        (lambda f: {"targets": f.targets & [True, False, False, False]}, "have 1 class"),
    ],
)
def test_labels_on_one_side_or_of_one_class_give_a_reason(change, reason):
    one = features()
    found = score(replace(one, **change(one)), EvaluateSettings())
    assert reason in found.reason
    assert not found.modalities
    assert found.retrieval  # needs no labels


@pytest.mark.parametrize(
    ("without", "reason"),
    [
        (lambda f: f.is_test, "no labelled test clip has features of it"),
        (lambda f: f.is_train, "no labelled training clip has features of it"),
        (
            lambda f: f.is_train & ~f.targets[:, 0],
            "its labelled training clips have 1 class, and a probe needs two",
        ),
    ],
)
def test_a_modality_that_cannot_be_scored_is_named(without, reason):
    one = features()
    sound = np.where(without(one)[:, None], np.nan, one.matrices["audio/trained"])
    has = one.has | {"audio": one.has["audio"] & ~without(one)}
    found = score(
        replace(one, matrices=one.matrices | {"audio/trained": sound}, has=has), EvaluateSettings()
    )
    assert set(found.modalities) == {"video"}
    assert found.notes[0] == f"audio is not scored: {reason}"


def test_retrieval_without_a_score_says_why():
    one = features()
    nowhere = np.full_like(one.matrices["audio/trained"], np.nan)
    broken = replace(one, matrices=one.matrices | {"audio/trained": nowhere})
    assert score(broken, EvaluateSettings()).notes[-1] == (
        "retrieval is not measured: features or head outputs are missing or not finite"
    )
    assert not score(broken, EvaluateSettings(measures=("knn",))).notes[2:]
    none = replace(one, retrieval_clips=one.retrieval_clips[:0], retrieval={})
    assert score(none, EvaluateSettings()).notes == (
        "retrieval is not measured: 0 clips to search with picture and sound",
    )


def test_two_evaluations_are_paired_by_clip(tmp_path):
    settings = EvaluateSettings(measures=("linear", "retrieval"), retrieval_of="heads")
    good = features()
    bad = replace(
        good, matrices={**good.matrices, "video/trained": good.matrices["video/untrained"]}
    )
    _, first = score_with_outcomes(good, settings)
    scores, second = score_with_outcomes(bad, settings)
    first.write(tmp_path / "outcomes.npz")
    first = Outcomes.read(tmp_path / "outcomes.npz")
    path = "video/trained/linear"
    change = paired(first, path, second, path)
    assert change.low is not None
    assert change.value == pytest.approx(
        first.values[path].mean() - scores.modalities["video"]["trained"].accuracy["linear"]
    )
    assert paired_retrieval(first, second).value == 0.0
    with pytest.raises(KeyError):
        paired(first, "video/trained/knn", second, path)
    (tmp_path / "outcomes.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match=r"is no outcomes\.npz"):
        Outcomes.read(tmp_path / "outcomes.npz")


def test_joined_classifiers_are_scored_with_a_modality_missing():
    """Half of the class is in each modality, so one alone cannot name it."""
    settings = EvaluateSettings(
        measures=("knn", "linear", "svm"), fusion=("both", "missing"), selection="test"
    )
    found = score(features(), settings)
    for measure in settings.measures:
        full, *others = (
            found.modalities[subject]["trained"].measures[measure].score.value
            for subject in ("both", "both_video_only", "both_audio_only")
        )
        assert full > 0.9
        for other in others:
            assert 0.3 < other < 0.75
    assert found.gains["both_video_only/linear"].low is not None


def test_the_choice_on_the_test_clips_is_reported_beside_the_honest_one():
    noisy = features(noise=1.0)
    settings = EvaluateSettings(measures=("linear", "svm"))
    honest = score(noisy, settings).modalities["audio"]["trained"]
    both = score(noisy, settings.model_copy(update={"selection": "test"}))
    for measure, one in both.modalities["audio"]["trained"].measures.items():
        assert one.score == honest.measures[measure].score
        chosen = one.figures["top1_chosen_on_test"]
        assert chosen.value >= one.score.value
        assert "top1_chosen_on_test" not in honest.measures[measure].figures


def test_scores_of_views_are_averaged_as_probabilities():
    """Two views of each clip tell it apart; the third is noisy."""
    one = features()
    owners = np.repeat(np.arange(160), 3)
    views = {}
    for path, matrix in one.matrices.items():
        noise = np.random.default_rng(1).normal(size=(160, 8)).astype(np.float32)
        views[f"pooled/{path}"] = np.stack([matrix, matrix, matrix + noise], axis=1).reshape(480, 8)
    several = replace(one, views=views, view_owners=dict.fromkeys(one.matrices, owners))
    settings = EvaluateSettings(measures=("knn", "linear", "svm"), selection="test")
    found, outcomes = score_with_outcomes(several, settings)
    trained = found.modalities["late"]["trained"]
    assert trained.accuracy["linear"] > 0.8
    assert trained.num_test == 54
    assert found.modalities["video"]["trained"].num_sources == 27
    assert outcomes.values["video/trained/svm"].shape == (54,)


def test_another_encoder_is_compared_clip_by_clip():
    one = features()
    other = {
        path.replace("untrained", "reference"): matrix for path, matrix in one.matrices.items()
    }
    video_only = {path: matrix for path, matrix in other.items() if path != "audio/reference"}
    settings = EvaluateSettings(measures=("linear",))
    found = score(replace(one, matrices=video_only), settings)
    assert not found.gains
    change = found.over_reference["video/linear"]
    assert change.low <= change.value <= change.high
    networks = found.modalities["video"]
    assert change.value == pytest.approx(
        networks["trained"].accuracy["linear"] - networks["reference"].accuracy["linear"]
    )
    assert set(found.modalities["audio"]) == {"trained"}
    assert "video/over_reference/linear" in found.gain_figures()
    assert "audio/linear" not in found.over_reference


def test_fewer_clips_than_neighbors_are_named():
    found = score(features(), EvaluateSettings(measures=("knn",), fusion=(), neighbors=500))
    assert found.notes == tuple(
        f"{side}: neighbors (500) is more than the 106 training clips, all of which vote"
        for side in ("video", "audio")
    )

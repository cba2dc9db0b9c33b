"""Scores come back from `scores.json` as they went in, and nothing else is taken for scores."""

import json

import pytest

from pipelines.evaluation.scores import FeatureScores, NetworkScore, Scores, read_scores

TRAINED = NetworkScore(
    knn=0.5,
    linear=0.75,
    knn_per_class=(1.0, None),
    linear_per_class=(0.5, 0.25),
    linear_l2=0.001,
    majority=0.5,
    num_train=8,
    num_test=4,
)
SCORES = Scores(
    checkpoint="/runs/one/step_000000007",
    step=7,
    pretrain_run_id="pretrain",
    evaluate_run_id="evaluate",
    dataset_id="clips",
    role="teacher",
    num_windows=2,
    found=FeatureScores(("a", "b"), 9, 5, "", {"video": {"trained": TRAINED}}),
)


def test_scores_come_back_and_keep_the_keys_of_the_file(tmp_path):
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(SCORES.to_json() | {"of a later version": 1}))
    assert read_scores(file) == SCORES
    assert list(SCORES.to_json()) == [
        "checkpoint",
        "step",
        "pretrain_run_id",
        "evaluate_run_id",
        "dataset_id",
        "role",
        "num_windows",
        "classes",
        "num_train",
        "num_test",
        "reason",
        "modalities",
    ]
    assert list(SCORES.to_json()["modalities"]["video"]["trained"]) == [
        "knn",
        "linear",
        "knn_per_class",
        "linear_per_class",
        "linear_l2",
        "majority",
        "num_train",
        "num_test",
    ]
    assert SCORES.found.accuracies() == {"video/trained/knn": 0.5, "video/trained/linear": 0.75}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '"scores"',
        "{}",
        json.dumps(SCORES.to_json() | {"modalities": {"video": {"trained": {"knn": 0.5}}}}),
        json.dumps(SCORES.to_json() | {"modalities": []}),
        json.dumps(SCORES.to_json() | {"classes": None}),
    ],
)
def test_another_file_is_no_scores(tmp_path, text):
    file = tmp_path / "scores.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"is no scores\.json of an evaluation"):
        read_scores(file)

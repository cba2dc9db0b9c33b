"""Scores keep their figures on the way through scores.json."""

import json

import pytest

from pipelines.evaluation.intervals import Figure
from pipelines.evaluation.scores import (
    FeatureScores,
    MeasureScore,
    NetworkScore,
    RetrievalScore,
    Scores,
)
from pipelines.evaluation.scores_file import read_scores

LINEAR = MeasureScore({"top1": Figure(0.75, 0.6, 0.9), "top5": Figure(1.0)}, (0.5, None))
KNN = MeasureScore({"top1": Figure(0.5, 0.4, 0.6)}, (0.5, None), ((1, 1), (0, 0)), 0.1, False)
TRAINED = NetworkScore({"knn": KNN, "linear": LINEAR}, 0.25, 80, 40, 20)
RANKS = RetrievalScore({"recall@1": Figure(0.1, 0.0, 0.2)}, {"recall@1": 0.05}, 20)
SCORES = Scores(
    checkpoint="checkpoint",
    step=7,
    pretrain_run_id="pretrain-run",
    evaluate_run_id="evaluate-run",
    dataset_id="clips",
    role="teacher",
    num_windows=2,
    found=FeatureScores(
        ("a", "b"),
        80,
        40,
        "",
        {"video": {"trained": TRAINED}},
        {"video/knn": Figure(0.2, 0.1, 0.3)},
        {"audio_to_video": {"trained": RANKS}},
        ("1 clip is left out",),
    ),
)


def test_scores_come_back(tmp_path):
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(SCORES.to_json() | {"of a later version": 1}))
    assert read_scores(file) == SCORES
    assert SCORES.found.accuracies() == {"video/trained/knn": 0.5, "video/trained/linear": 0.75}
    assert SCORES.found.figures() == {
        "video/trained/knn": KNN.score,
        "video/trained/linear": LINEAR.score,
        "video/trained/linear/top5": Figure(1.0),
        "audio_to_video/trained/retrieval/recall_at_1": RANKS.figures["recall@1"],
    }


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

"""What evaluation and promotion refuse in their settings, in one line each."""

import pytest

from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.mistakes import mistakes_in
from pipelines.config.promote import PromoteConfig

PLACES = {"checkpoint": "/a", "dataset": "/b", "output": "/c"}
ESC50 = {"dataset": "esc50", "lists": "/lists"}


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"measures": ["knn", "linear", "knn"]}, "measures (knn) must be named once"),
        ({"measures": []}, "measures ([]) must have at least 1 value"),
        ({"measures": "knn"}, "measures ('knn') must be a list, such as [knn]"),
        ({"linear_l2": [-1]}, "linear_l2.0 (-1): input should be greater than 0"),
        ({"fusion": ["both", "both"]}, "fusion (both) must be named once"),
        ({"train_splits": ["fit", "fit"]}, "train_splits (fit) must be named once"),
        ({"retrieval_sizes": [100, 100]}, "retrieval_sizes (100) must be named once"),
        (
            {"official": {**ESC50, "folds": [2, 1, 2]}},
            "official.folds (2) must be named once",
        ),
        (
            {"train_splits": ["train", "val"], "test_splits": ["val", "test"]},
            "test_splits (val) must not be in train_splits (train, val): clips that a classifier "
            "learns from say nothing of others",
        ),
        (
            {"finetune": {"epochs": 1}},
            "finetune: warmup_epochs (5) must not be above epochs (1)",
        ),
        (
            {"finetune": {"crop_area": [0.5, 3]}},
            "finetune.crop_area (0.5, 3) must be two shares of the frame, the smaller one first",
        ),
        (
            {"finetune": {"audio_crop": [1.5, 0.6]}},
            "finetune.audio_crop (1.5, 0.6) must begin with the smaller number",
        ),
    ],
)
def test_an_evaluation_names_value_and_rule(settings, mistake):
    assert mistakes_in({**PLACES, **settings}, EvaluateConfig) == [mistake]


def test_a_gallery_has_two_clips():
    found = mistakes_in(
        {**PLACES, "retrieval_sizes": [1], "retrieval_max_clips": 1}, EvaluateConfig
    )
    assert found == [
        "retrieval_sizes.0 (1): input should be greater than or equal to 2",
        "retrieval_max_clips (1): input should be greater than or equal to 2",
    ]


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"modalities": ["video", "video"]}, "modalities (video) must be named once"),
        (
            {"metric": "attentive", "compared_on": "both"},
            "compared_on (both) must be own or late with metric=attentive, which is not measured "
            "on joined features",
        ),
    ],
)
def test_a_promotion_names_value_and_rule(settings, mistake):
    assert mistakes_in({"checkpoint": "/a", **settings}, PromoteConfig) == [mistake]

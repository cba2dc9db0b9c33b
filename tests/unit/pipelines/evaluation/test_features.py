"""Features of clips of odd lengths."""

import numpy as np

from pipelines.config.evaluate import EvaluateSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.evaluation.features import features_of
from pipelines.evaluation.networks import network_of
from pipelines.progress import ignore_progress
from tests.helpers.clip_datasets import write_dataset
from tests.helpers.training import tiny_config
from xkd_core.xkd import build_xkd


def test_clips_far_shorter_than_a_window_have_features(tmp_path):
    write_dataset(tmp_path / "clips", 4, num_frames=1, split=lambda i: "test" if i % 2 else "train")
    config = tiny_config(tmp_path, tmp_path)
    networks = {"trained": network_of(build_xkd(config.model).eval(), config.model, "teacher")}
    dataset = ClipDataset.open(tmp_path / "clips")
    features = features_of(networks, dataset, EvaluateSettings(), ignore_progress)
    assert features.is_test.sum() == 2
    for matrix in features.matrices.values():
        assert np.isfinite(matrix).all()


def test_a_split_that_the_dataset_lacks_is_named(tmp_path):
    write_dataset(tmp_path / "clips", 4, split=lambda clip: "test" if clip else "train")
    model = tiny_config(tmp_path, tmp_path).model
    settings = EvaluateSettings(train_splits=("train", "trian"), measures=("knn",), num_windows=1)
    found = features_of(
        {"trained": network_of(build_xkd(model), model, "teacher")},
        ClipDataset.open(str(tmp_path / "clips")),
        settings,
        ignore_progress,
    )
    assert found.notes == (
        "train_splits: no clip lies in trian; splits of the dataset: test, train",
    )

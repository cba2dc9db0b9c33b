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

"""Pictures of a run's report, from the features of clips."""

import pytest

from pipelines.config.evaluate import EvaluateSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.evaluation.features import features_of
from pipelines.evaluation.networks import network_of
from pipelines.progress import ignore_progress
from pipelines.report.run_pictures import galleries
from tests.helpers.clip_datasets import write_dataset
from tests.helpers.training import tiny_config
from xkd_core.xkd import build_xkd


@pytest.mark.parametrize(("num_clips", "num_shown"), [(12, 8), (5, 0)])
def test_galleries_show_the_nearest_clips_of_the_other_modality(tmp_path, num_clips, num_shown):
    folder = tmp_path / "clips"
    write_dataset(folder, num_clips, num_frames=10, split=lambda _: "test")
    config, dataset = tiny_config(tmp_path, folder), ClipDataset.open(folder)
    networks = {"trained": network_of(build_xkd(config.model).eval(), config.model, "teacher")}
    features = features_of(networks, dataset, EvaluateSettings(), ignore_progress)
    found = galleries(dataset, config, features, EvaluateSettings())
    assert len(found) == num_shown
    for one in found:
        pictures, sounds = (3, 2) if one.direction == "video_to_audio" else (2, 3)
        assert one.query.image.ndim == pictures
        assert {clip.image.ndim for clip in one.neighbors} == {sounds}
        nearest_first = [clip.similarity for clip in one.neighbors]
        assert nearest_first == sorted(nearest_first, reverse=True)
        assert sum(clip.is_same_clip for clip in one.neighbors) <= 1

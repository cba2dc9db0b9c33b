"""Windows, crops and whole sources: what a classifier sees of a clip."""

import numpy as np
import pytest
import torch

from pipelines.config.evaluate import EvaluateSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.evaluation.features import features_of
from pipelines.evaluation.networks import network_of
from pipelines.evaluation.probes.classifiers import score
from pipelines.progress import ignore_progress
from tests.helpers.clip_datasets import MadeSegment, write_dataset, write_segments
from tests.helpers.training import tiny_config
from xkd_core.views.video import denormalize_video, plain_video_view
from xkd_core.xkd import build_xkd


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    config = tiny_config(folder, folder)
    torch.manual_seed(0)
    return {"trained": network_of(build_xkd(config.model).eval(), config.model, "teacher")}


def embed(folder, networks, **settings):
    values = EvaluateSettings.model_validate({"measures": ["knn", "linear"], **settings})
    return features_of(networks, ClipDataset.open(folder), values, ignore_progress), values


@pytest.mark.parametrize(("height", "width"), [(12, 30), (30, 12)])
def test_three_crops_are_the_squares_at_both_ends_and_in_the_middle(height, width):
    frames = torch.zeros((1, 2, height, width, 3), dtype=torch.uint8)
    along = torch.arange(max(height, width), dtype=torch.uint8) * 8
    frames += along.view(1, 1, -1, 1, 1) if height > width else along.view(1, 1, 1, -1, 1)
    sides = torch.tensor([height]), torch.tensor([width])
    for number, first in enumerate((0, 9, 18)):
        view = plain_video_view(frames, *sides, 12, (number, 3))
        pixels = denormalize_video(view)[0, 0, 0] * 255
        line = pixels[:, 0] if height > width else pixels[0]
        torch.testing.assert_close(line, along[first : first + 12].float(), atol=0.01, rtol=0)
    central = plain_video_view(frames, *sides, 12)
    assert central.equal(plain_video_view(frames, *sides, 12, (1, 3)))


def test_a_clip_has_as_many_views_as_windows_times_crops(tmp_path, networks):
    shape = {0: (8, 8)}
    write_dataset(
        tmp_path / "clips",
        6,
        num_frames=16,
        size=lambda clip: shape.get(clip, (6, 12)),
        split=lambda clip: "test" if clip % 2 else "train",
    )
    several = {"num_windows": 3, "num_crops": 3}
    found, settings = embed(tmp_path / "clips", networks, average="scores", **several)
    counts = np.bincount(found.view_owners["video/trained"]).tolist()
    assert counts == [3, 9, 9, 9, 9, 9]  # the crops of a square are one
    assert np.bincount(found.view_owners["audio/trained"]).tolist() == [3] * 6
    assert "1 of 6 clips are square: one crop instead of 3" in found.notes
    whole, _ = embed(tmp_path / "clips", networks, **several)
    assert not whole.views
    views = found.views["pooled/video/trained"]
    mean = np.stack([views[found.view_owners["video/trained"] == i].mean(axis=0) for i in range(6)])
    np.testing.assert_allclose(whole.matrices["video/trained"], mean, rtol=1e-5)
    assert abs(views[3] - views[4]).max() > 1e-4  # crops differ
    assert set(score(found, settings).modalities) == {"video", "audio", "both", "late"}


def test_other_sizes_resize_the_position_table(tmp_path, networks):
    size = networks["trained"]["video"].model.video.size
    write_dataset(tmp_path / "clips", 4, split=lambda clip: "test" if clip % 2 else "train")
    same, _ = embed(tmp_path / "clips", networks, video_size=size)
    usual, _ = embed(tmp_path / "clips", networks)
    twice, _ = embed(tmp_path / "clips", networks, video_size=2 * size)
    np.testing.assert_array_equal(same.matrices["video/trained"], usual.matrices["video/trained"])
    assert abs(twice.matrices["video/trained"] - usual.matrices["video/trained"]).max() > 1e-4
    assert any("below video_size" in note for note in twice.notes)


def test_a_source_is_scored_once_with_all_its_segments(tmp_path, networks):
    segments = [MadeSegment(source, tick, 8) for source in range(3) for tick in (0, 8)]
    write_segments(tmp_path / "clips", segments)
    each, _ = embed(tmp_path / "clips", networks)
    whole, _ = embed(tmp_path / "clips", networks, per="source", average="scores", num_windows=1)
    assert len(each.clip_ids) == 6
    assert len(whole.clip_ids) == 3
    assert whole.clip_ids == each.clip_ids[::2]
    assert whole.view_owners["audio/trained"].tolist() == [0, 0, 1, 1, 2, 2]
    means, _ = embed(tmp_path / "clips", networks, per="source")
    np.testing.assert_allclose(
        means.matrices["video/trained"],
        each.matrices["video/trained"].reshape(3, 2, -1).mean(axis=1),
        rtol=1e-5,
    )


def test_what_cannot_go_together_is_refused():
    with pytest.raises(ValueError, match=r"fusion \(missing\) must come with both"):
        EvaluateSettings(fusion=("missing",))
    with pytest.raises(ValueError, match=r"measures \(attentive\) must come with per=segment"):
        EvaluateSettings(per="source", measures=("attentive",))

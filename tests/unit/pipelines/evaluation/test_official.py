"""Official lists divide one clip dataset into folds, and say what of the split is missing."""

import numpy as np
import pytest
import torch

from pipelines.config.evaluate import EvaluateSettings, OfficialSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.errors import UserError
from pipelines.evaluation.features import features_of
from pipelines.evaluation.networks import network_of
from pipelines.evaluation.official import OfficialShare, choose_clips, official_share, share_text
from pipelines.evaluation.outcomes import paired
from pipelines.evaluation.probes.folds import score_folds
from pipelines.progress import ignore_progress
from tests.helpers.clip_datasets import MadeSegment, write_segments
from tests.helpers.training import tiny_config
from xkd_core.xkd import build_xkd

SETTINGS = EvaluateSettings(
    measures=("knn", "linear", "retrieval"), fusion=("both",), per="source", num_windows=1
)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    config = tiny_config(folder, folder)
    found = {}
    for seed, name in enumerate(("trained", "untrained")):
        torch.manual_seed(seed)
        found[name] = network_of(build_xkd(config.model).eval(), config.model, "teacher")
    return found


def ucf101(folder, *, groups=6, present=lambda _: True, num_folds=3):
    """Two classes of so many videos with two clips each, of which some were ingested."""
    names = [
        f"v_{label}_g{group:02}_c{clip:02}"
        for label in ("Archery", "Bowling")
        for group in range(groups)
        for clip in (1, 2)
    ]
    lists = folder / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    for fold in range(1, num_folds + 1):
        for split in ("train", "test"):
            rows = [
                f"{name.split('_')[1]}/{name}.avi"
                for name in names
                if (int(name.split("_")[2][1:]) % 3 == fold - 1) == (split == "test")
            ]
            (lists / f"{split}list{fold:02}.txt").write_text("\n".join(rows) + "\n")
    there = [name for name in names if present(name)]
    segments = [
        MadeSegment(number, tick, 8, name=f"/media/UCF-101/{name}.avi")
        for number, name in enumerate(there)
        for tick in (0, 8)
    ]
    write_segments(folder / "clips", segments)
    return ClipDataset.open(folder / "clips"), OfficialSettings(dataset="ucf101", lists=str(folder))


def evaluated(dataset, official, networks):
    chosen = choose_clips(dataset, SETTINGS, official)
    features = features_of(networks, dataset, SETTINGS, ignore_progress, chosen=chosen)
    return features, *score_folds(features, SETTINGS)


def test_three_folds_are_scored_from_one_dataset_and_averaged(tmp_path, networks):
    dataset, official = ucf101(tmp_path)
    features, scores, outcomes = evaluated(dataset, official, networks)
    assert len(features.clip_ids) == 24  # sources, of two segments each
    assert len(np.unique(features.sources)) == 12  # the videos that clips are cut from
    assert [int(fold.is_test.sum()) for fold in features.folds] == [8, 8, 8]
    tested = np.sum([fold.is_test for fold in features.folds], axis=0)
    assert tested.tolist() == [1] * 24
    assert scores.classes == ("Archery", "Bowling")
    assert set(scores.modalities) == {"video", "audio", "both"}
    for subject, by in scores.modalities.items():
        for measure, one in by["trained"].measures.items():
            assert len(one.folds) == 3
            assert one.score.value == pytest.approx(np.mean(one.folds))
            assert one.score.low <= one.score.value <= one.score.high
            assert sum(map(sum, one.confusion)) == 24
            gain = scores.gains[f"{subject}/{measure}"].value
            assert gain == pytest.approx(one.score.value - by["untrained"].accuracy[measure])
        assert by["trained"].num_test == 24
        assert by["trained"].num_sources == 12
    outcomes.write(tmp_path / "outcomes.npz")
    again = type(outcomes).read(tmp_path / "outcomes.npz")
    path = "video/trained/linear"
    assert paired(outcomes, path, again, path).value == 0.0
    share = official_share(dataset, SETTINGS, official)
    assert share == OfficialShare("ucf101", (1, 2, 3), 3, 48, 48, 24, 24)
    assert share_text(share) == "ucf101, 3 folds: the whole official split"


def test_what_is_missing_of_the_split_is_counted(tmp_path, networks):
    dataset, official = ucf101(tmp_path, present=lambda name: "g00_c02" not in name)
    one = official.model_copy(update={"folds": (1, 2)})
    share = official_share(dataset, SETTINGS, one)
    assert (share.present_test, share.listed_test) == (14, 16)
    assert share.marks() == ("fold 1, 2 of 3", "14 of 16 test sources", "30 of 32 training sources")
    features, _, _ = evaluated(dataset, one, networks)
    assert [fold.name for fold in features.folds] == ["1", "2"]


def test_a_fold_without_clips_and_lists_that_are_not_there_are_one_line(tmp_path):
    dataset, official = ucf101(tmp_path, present=lambda name: int(name[-6:-4]) % 3 != 1)
    with pytest.raises(UserError, match=r"fold 2 of ucf101 has no test clip in dataset .*folds"):
        choose_clips(dataset, SETTINGS, official)
    elsewhere = official.model_copy(update={"lists": str(tmp_path / "clips")})
    with pytest.raises(UserError, match=r"official.lists \(.*clips\) must hold trainlist01.txt"):
        choose_clips(dataset, SETTINGS, elsewhere)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "fsd50k", "lists": "/x"}, "is for datasets of several folds"),
        ({"dataset": "esc50", "folds": (1,)}, "must come with lists"),
        ({"dataset": "hmdb51", "lists": "/x", "folds": (4,)}, "must be at most 3 for hmdb51"),
    ],
)
def test_folds_that_a_dataset_does_not_have_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        OfficialSettings.model_validate(values)

"""Fine-tuning learns, and repeats."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.config.evaluate import EvaluateSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.evaluation.features import features_of
from pipelines.evaluation.finetune import Labelled, fine_tune, labelled
from pipelines.evaluation.finetune_views import _rand_augment, seeded
from pipelines.evaluation.networks import checkpoint_source, load_network
from pipelines.progress import ignore_progress
from tests.helpers.clip_datasets import write_dataset
from tests.helpers.encoders import write_checkpoint

RECIPE = {
    "epochs": 12,
    "batch_size": 12,
    "learning_rate": 5e-3,
    "layer_decay": 0.9,
    "warmup_epochs": 1,
    "dropout": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "erasing": 0.0,
    "randaugment_operations": 0,
    "flip": False,
    "score_every": 4,
}


def colored(clip, num_frames, size):
    """Noise with a tint, which is the class."""
    rng = np.random.default_rng(clip)
    frames = rng.integers(0, 130, (num_frames, *size, 3), dtype=np.uint8)
    frames[..., clip % 3] += np.uint8(60)
    return frames


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    write_dataset(
        folder / "clips", 36, num_frames=10, size=lambda _: (32, 32), frames=colored,
        split=lambda clip: "test" if clip % 4 == 0 else "train",
    )  # fmt: skip
    source = checkpoint_source(write_checkpoint(folder / "run"), "checkpoint", "teacher")
    return source, str(folder / "clips")


def run(setup, modality="video", **changes):
    source, clips = setup
    settings = EvaluateSettings.model_validate(
        {"measures": ["finetune"], "finetune": RECIPE, "num_windows": 2} | changes
    )
    dataset = ClipDataset.open(clips)
    networks = {"trained": load_network([source])}
    features = features_of(networks, dataset, settings, ignore_progress)
    sides = [labelled(features, modality, np.flatnonzero(side)) for side in (
        features.is_train, features.is_test)]  # fmt: skip
    return sides[1], fine_tune(source, modality, clips, settings, *sides)


def accuracy(test: Labelled, shares):
    return float((shares.argmax(axis=1) == test.targets.argmax(axis=1)).mean())


def test_pictures_are_learned_and_every_scored_epoch_is_returned(setup):
    test, every = run(setup, selection="test")
    assert len(every) == 3
    assert every[-1].shape == (9, 3)
    np.testing.assert_allclose(every[-1].sum(axis=1), 1.0)
    assert accuracy(test, every[-1]) > 0.8


def test_the_same_seed_gives_the_same_scores(setup):
    every = {"mixup": 0.6, "cutmix": 0.5, "erasing": 0.5, "dropout": 0.5, "epochs": 2}
    recipe = RECIPE | every | {"randaugment_operations": 2}
    first, second = (run(setup, finetune=recipe)[1] for _ in range(2))
    np.testing.assert_array_equal(first[-1], second[-1])
    other = run(setup, finetune=recipe, seed=1)[1]
    assert abs(other[-1] - first[-1]).max() > 1e-4
    unkept = run(setup, finetune=recipe | {"clips_gb": 0.0})[1]
    np.testing.assert_array_equal(first[-1], unkept[-1])


def test_sound_and_several_labels(setup):
    source, clips = setup
    settings = EvaluateSettings.model_validate({"finetune": RECIPE | {"epochs": 1}})
    test, (shares,) = run(setup, "audio", finetune=RECIPE | {"epochs": 1})
    assert shares.shape == (9, 3)
    several = [
        replace(test, targets=np.tile([True, True, False], (9, 1)), is_multilabel=True),
        replace(test, targets=np.tile([True, False, True], (9, 1)), is_multilabel=True),
    ]
    (found,) = fine_tune(source, "audio", clips, settings, *several)
    assert ((found >= 0) & (found <= 1)).all()


def augmented(magnitude, operations=1):
    pixels = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(0))
    frames = pixels.to(torch.uint8).expand(4, -1, -1, -1)
    found = []
    for seed in range(120):
        with seeded(seed):
            found.append(_rand_augment(frames, operations, magnitude))
    return frames.float(), torch.stack(found).float()


def test_operations_of_randaugment_are_those_of_timm():
    frames, strong = augmented(9)
    assert (strong == strong[:, :1]).all()  # all frames of a clip alike
    unchanged = (strong == frames).flatten(1).all(dim=1).float().mean()
    assert 0.45 < unchanged < 0.7  # half of the clips, and 2 of 14 operations change nothing here
    _, weak = augmented(1)
    assert (strong - frames).abs().mean() > 2 * (weak - frames).abs().mean()
    assert augmented(9, operations=0)[1].equal(frames.expand(120, -1, -1, -1, -1))

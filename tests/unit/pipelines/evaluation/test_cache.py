"""Features on disk: written once, read again, and never taken for another encoder's."""

import json
import shutil

import numpy as np
import pytest
import torch

from pipelines.config.evaluate import EvaluateConfig, EvaluateSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.errors import UserError
from pipelines.evaluation.checks import networks_to_score
from pipelines.evaluation.choice import choose
from pipelines.evaluation.evaluate import _extract
from pipelines.evaluation.features import features_of
from pipelines.evaluation.networks import checkpoint_source, load_network, network_of
from pipelines.progress import ignore_progress
from tests.helpers.clip_datasets import write_dataset
from tests.helpers.encoders import write_checkpoint
from tests.helpers.training import tiny_config
from xkd_core.xkd import build_xkd

EVERY = EvaluateSettings(
    measures=("knn", "layers", "attentive", "retrieval"), average="scores", batch_size=3
)


def network(tmp_path, seed=0):
    config = tiny_config(tmp_path, tmp_path)
    torch.manual_seed(seed)
    return {"trained": network_of(build_xkd(config.model).eval(), config.model, "teacher")}


@pytest.fixture
def clips(tmp_path):
    """Three shards; the first clips lack a picture, the last ones sound."""
    write_dataset(
        tmp_path / "clips",
        20,
        split=lambda clip: "test" if clip % 3 == 0 else "train",
        has_video=lambda clip: clip > 1,
        has_audio=lambda clip: clip < 18,
    )
    return ClipDataset.open(tmp_path / "clips")


def arrays(features):
    parts = (features.matrices, features.layers, features.tokens, features.retrieval)
    named = {f"{n}/{path}": one for n, part in enumerate(parts) for path, one in part.items()}
    return named | dict(features.views) | {f"o/{k}": v for k, v in features.view_owners.items()}


def same(first, second):
    ours, theirs = arrays(first), arrays(second)
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(array, theirs[path], err_msg=path)


def test_features_are_read_again_without_a_clip(tmp_path, clips):
    networks, cache = network(tmp_path), tmp_path / "cache"
    chosen = choose(clips, EVERY, None)
    plain = features_of(networks, clips, EVERY, ignore_progress)
    first = features_of(networks, clips, EVERY, ignore_progress, cache=cache)
    same(plain, first)
    assert len(clips.index) == 20  # stays in memory
    for shard in clips.shards:
        shutil.move(shard, tmp_path)
    again = features_of(networks, clips, EVERY, ignore_progress, chosen=chosen, cache=cache)
    same(plain, again)


def test_what_decides_the_features_has_files_of_its_own(tmp_path, clips):
    cache = tmp_path / "cache"
    networks = network(tmp_path)
    features_of(networks, clips, EVERY, ignore_progress, cache=cache)
    assert len(list(cache.iterdir())) == 2  # video and audio
    sound = EVERY.model_copy(update={"num_crops": 3})
    features_of(networks, clips, sound, ignore_progress, cache=cache)
    assert len(list(cache.iterdir())) == 3  # crops are of pictures alone
    features_of(network(tmp_path, seed=1), clips, EVERY, ignore_progress, cache=cache)
    assert len(list(cache.iterdir())) == 5
    assert all(len(list(folder.glob("*.npz"))) == 3 for folder in cache.iterdir())


def test_features_without_head_outputs_do_not_hide_those_of_a_later_evaluation(tmp_path, clips):
    networks, cache = network(tmp_path), tmp_path / "cache"
    without = EvaluateSettings(measures=("knn",))
    first = features_of(networks, clips, without, ignore_progress, cache=cache)
    assert not first.retrieval
    with_heads = EvaluateSettings(measures=("knn", "retrieval"), retrieval_of="heads")
    found = features_of(networks, clips, with_heads, ignore_progress, cache=cache)
    same(found, features_of(networks, clips, with_heads, ignore_progress))
    assert set(found.retrieval) == {"video/trained", "audio/trained"}
    same(first, features_of(networks, clips, without, ignore_progress, cache=cache))


def test_a_shard_without_all_clips_is_embedded_again(tmp_path, clips):
    networks, cache = network(tmp_path), tmp_path / "cache"
    part = EVERY.model_copy(update={"train_splits": ("none",)})
    features_of(networks, clips, part, ignore_progress, cache=cache)
    found = features_of(networks, clips, EVERY, ignore_progress, cache=cache)
    same(found, features_of(networks, clips, EVERY, ignore_progress))


def test_files_of_another_encoder_and_damaged_ones_are_refused_in_one_line(tmp_path, clips):
    networks, cache = network(tmp_path), tmp_path / "cache"
    features_of(networks, clips, EVERY, ignore_progress, cache=cache)
    folders = {
        json.loads((f / "features.json").read_text())["modality"]: f for f in cache.iterdir()
    }
    ours, theirs = (sorted(folders[side].glob("*.npz"))[0] for side in ("video", "audio"))
    kept = ours.read_bytes()
    shutil.copy(theirs, ours)
    with pytest.raises(UserError, match=r"holds features of encoder \w{12}, not of \w{12}: delete"):
        features_of(networks, clips, EVERY, ignore_progress, cache=cache)
    ours.write_bytes(kept[:100])
    with pytest.raises(UserError, match=r"npz\) is damaged: delete it"):
        features_of(networks, clips, EVERY, ignore_progress, cache=cache)
    ours.write_bytes(kept)
    key = folders["audio"] / "features.json"
    key.write_text(key.read_text().replace('"dataset_id": "made20"', '"dataset_id": "other"'))
    with pytest.raises(UserError, match="holds features of dataset_id other, not of made20"):
        features_of(networks, clips, EVERY, ignore_progress, cache=cache)


@pytest.mark.ray
def test_workers_of_the_graph_find_what_one_process_finds(tmp_path, clips, local_ray):
    checkpoint = write_checkpoint(tmp_path / "run")
    values = {"checkpoint": str(checkpoint), "dataset": clips.path, "measures": EVERY.measures}
    reports = []
    config = EvaluateConfig(**values, output=str(tmp_path / "a"), num_workers=2)
    networks = networks_to_score(
        config, (checkpoint_source(checkpoint, "checkpoint", "teacher"),), ()
    )
    found = _extract(networks, config, lambda *report: reports.append(report)).features
    assert reports[-1][:2] == (20, 20)
    files = sorted((tmp_path / "a" / "features").rglob("*.npz"))
    # Three shards, two modalities. The checkpoint is not trained, so both networks are the same.
    assert len(files) == 6
    times = [file.stat().st_mtime_ns for file in files]
    files[0].unlink()  # as if a worker had been killed
    again = _extract(networks, config, lambda *_: None).features
    same(found, again)
    assert [file.stat().st_mtime_ns for file in files][1:] == times[1:]
    loaded = {name: load_network(one, trained=name == "trained") for name, one in networks.items()}
    here = features_of(loaded, clips, EvaluateSettings(measures=EVERY.measures), ignore_progress)
    for path, matrix in here.matrices.items():
        np.testing.assert_allclose(found.matrices[path], matrix, rtol=1e-4, atol=1e-6)

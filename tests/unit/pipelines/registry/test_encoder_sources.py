"""An evaluation takes encoders from checkpoints, registered versions and published files."""

import json
import shutil

import mlflow
import numpy as np
import pytest
import torch

from pipelines.config.base import JobConfig, TrackingSettings
from pipelines.config.evaluate import EvaluateConfig, EvaluateSettings
from pipelines.config.promote import PromoteSettings
from pipelines.config.published import PublishedSettings
from pipelines.config.pull import PullConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.errors import UserError
from pipelines.evaluation.checks import check_evaluate, networks_to_score
from pipelines.evaluation.features import features_of
from pipelines.evaluation.networks import load_network
from pipelines.models.checkpoints import load_model
from pipelines.progress import ignore_progress
from pipelines.registry.encoder_sources import encoder_sources
from pipelines.registry.promote import promote
from pipelines.registry.pull import pull
from pipelines.tracking.runs import open_run
from pipelines.training.weight_source import open_weights
from tests.helpers.clip_datasets import write_dataset
from tests.helpers.encoders import write_checkpoint
from xkd_core.config import ModelConfig
from xkd_core.losses import Centers
from xkd_core.published.names import to_published


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    yield TrackingSettings(uri=f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tracking):
    """A checkpoint whose encoders are registered as `any-video` and `any-audio`."""
    found = write_checkpoint(tmp_path_factory.mktemp("run"))
    run = open_run(JobConfig(tracking=tracking), "promote", "test")
    promote(found, None, PromoteSettings(model_prefix="any"), run)
    return found


def found(tracking, *locations, role="teacher", published=None):
    return encoder_sources(
        locations,
        setting="checkpoint",
        role=role,
        published=published or PublishedSettings(),
        tracking=tracking,
    )


def weights(network):
    return {
        f"{modality}.{name}": tensor
        for modality, one in network.items()
        for name, tensor in one.encoder.state_dict().items()
    }


def test_registered_versions_are_the_checkpoints_encoders(checkpoint, tracking):
    own = load_network(found(tracking, str(checkpoint)))
    uris = ("models:/any-video@champion", "models:/any-audio/1")
    sources = found(tracking, *uris)
    assert [(one.step, one.run_id) for one in sources] == [(7, "pretrain-run")] * 2
    registered = load_network(sources)
    assert own.keys() == registered.keys() == {"video", "audio"}
    for name, tensor in weights(own).items():
        assert tensor.equal(weights(registered)[name])
    hashes = {modality: one.content_hash() for modality, one in registered.items()}
    assert len({*hashes.values(), *(one.content_hash() for one in own.values())}) == 4  # heads
    before = load_network(sources, trained=False, seed=3)
    again = load_network(sources, trained=False, seed=3)
    assert before["video"].content_hash() == again["video"].content_hash()
    assert before["video"].content_hash() != hashes["video"]


def test_a_pulled_version_and_the_folder_of_a_main_job_are_named_as_for_init(
    checkpoint, tracking, tmp_path
):
    uri = "models:/any-audio/1"
    pull(PullConfig(model=uri, output=str(tmp_path / "pulled"), tracking=tracking))
    for location in (uri, str(tmp_path / "pulled")):
        (source,) = found(tracking, location)
        assert (source.modalities, source.step, source.run_id) == (("audio",), 7, "pretrain-run")
        (other,) = open_weights(location, ModelConfig(), tracking)
        assert other.modality == "audio"
        (one,) = load_network((source,)).values()
        for name, tensor in one.encoder.state_dict().items():
            assert tensor.equal(other.load()[f"teacher.{name}"])
    job = tmp_path / "runs/mine"
    shutil.copytree(checkpoint, job / "pretrain/mine" / checkpoint.name)
    (source,) = found(tracking, str(job))
    assert source.path == str(job / "pretrain/mine" / checkpoint.name)
    assert {one.location for one in open_weights(str(job), ModelConfig(), tracking)} == {
        source.path
    }


def test_a_checkpoint_of_another_release_is_one_line(checkpoint, tracking, tmp_path):
    other = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, other)
    values = json.loads((other / "training.json").read_text())
    (other / "training.json").write_text(json.dumps(values | {"of_another_release": 1}))
    with pytest.raises(UserError, match="was written by another release") as caught:
        found(tracking, str(other))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_published_file_is_the_checkpoints_encoders(checkpoint, tracking, tmp_path, role):
    model, config = load_model(checkpoint)
    torch.manual_seed(1)
    for parameter in model.video_student.parameters():
        parameter.data += torch.randn_like(parameter)
    file = tmp_path / "checkpoint.pth.tar"
    tensors = to_published(model, Centers(torch.zeros(32), torch.zeros(32)))
    torch.save({"model": {f"module.{name}": one for name, one in tensors.items()}}, file)
    small = PublishedSettings(num_heads=2, video=config.model.video, audio=config.model.audio)
    network = load_network(found(tracking, str(file), role=role, published=small))
    for modality in ("video", "audio"):
        expected = model.get_submodule(f"{modality}_{role}").state_dict()
        for name, tensor in network[modality].encoder.state_dict().items():
            assert tensor.equal(expected[name])
    with pytest.raises(UserError, match=r"num_heads must be given"):
        found(tracking, str(file))


def test_a_registered_encoder_is_scored_beside_a_checkpoint(checkpoint, tracking, tmp_path):
    write_dataset(tmp_path / "clips", 8, num_frames=8, split=lambda i: "test" if i % 2 else "train")
    trained = found(tracking, str(checkpoint))
    champion = found(tracking, "models:/any-video@champion")
    config = EvaluateConfig(
        checkpoint=str(checkpoint),
        against="models:/any-video@champion",
        dataset=str(tmp_path / "clips"),
        output=str(tmp_path / "out"),
    )
    networks = networks_to_score(config, trained, champion)
    (mistake,) = check_evaluate(config, networks)
    assert "model.video.frame_rate (8) must equal the clips' frame_rate (4)" in mistake
    loaded = {name: load_network(one) for name, one in networks.items()}
    settings = EvaluateSettings()
    features = features_of(loaded, ClipDataset.open(config.dataset), settings, ignore_progress)
    assert set(features.matrices) == {
        f"{modality}/{name}" for modality in ("video", "audio") for name in ("trained", "untrained")
    } | {"video/reference"}
    for name in ("trained", "reference"):
        assert np.isfinite(features.matrices[f"video/{name}"]).all()
    np.testing.assert_array_equal(
        features.matrices["video/trained"], features.matrices["video/reference"]
    )
    assert any("retrieval needs both encoders" in note for note in features.notes)


@pytest.mark.parametrize(
    ("locations", "message"),
    [
        (("models:/any-video/1", "models:/any-video@champion"), "must name one video encoder"),
        (("models:/any-video@none",), "has no alias none, its aliases are: champion"),
        (("models:/none/1",), "no model none is registered"),
        (("models:/any-video",), "must be models:/NAME@ALIAS or models:/NAME/VERSION"),
        (("/nowhere",), r"checkpoint \(/nowhere\) does not exist"),
        ((__file__,), "test_encoder_sources.py"),
    ],
)
def test_what_is_no_encoder_is_named_in_one_line(checkpoint, tracking, locations, message):
    with pytest.raises(UserError, match=message) as caught:
        found(tracking, *locations)
    assert "\n" not in str(caught.value)

"""Files of the published method become registered encoders that embed as the files' encoders do."""

import argparse

import mlflow
import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from pipelines.config.import_checkpoint import ImportConfig
from pipelines.errors import UserError
from pipelines.media.windows import audio_windows, video_windows
from pipelines.registry.import_checkpoint import import_encoders, read_encoders
from pipelines.registry.uri import resolve_model
from pipelines.tracking.runs import open_run
from xkd_core.views.log_mel import LogMel
from xkd_core.views.video import plain_video_view
from xkd_core.views.views import plain_audio_view

VIDEO = {
    "num_frames": 8,
    "size": 32,
    "local_num_frames": 2,
    "local_size": 24,
    "tubelet_size": 2,
    "patch_size": 8,
}
AUDIO = {
    "num_samples": 16_000,
    "local_num_samples": 4_000,
    "num_mels": 16,
    "hop_length": 252,
    "patch_bins": 4,
    "patch_frames": 8,
}


@pytest.fixture(scope="module")
def file(golden_dir, tmp_path_factory):
    """A whole checkpoint of training, whose scheduler sets NumPy's numbers."""
    weights = load_file(golden_dir / "modality_specific" / "weights.safetensors")
    file = tmp_path_factory.mktemp("published") / "checkpoint.pth.tar"
    groups = [{"lr": np.float64(1e-4), "weight_decay": np.float64(0.3), "betas": (0.9, 0.95)}]
    values = {
        "optimizer": {"state": {}, "param_groups": groups},
        "model": {f"module.{name}": tensor for name, tensor in weights.items()},
        "epoch": 800,
        "amp": None,
    }
    torch.save(values, file)
    return file


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    yield f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    mlflow.set_tracking_uri(None)


def settings(file, store="", **changes):
    values = {"video": VIDEO, "audio": AUDIO, "num_heads": 3, "segment_seconds": 1.0}
    return ImportConfig.model_validate(
        {"file": str(file), "tracking": {"uri": store or None}, **values, **changes}
    )


def registered(config):
    return import_encoders(config, open_run(config, "import-checkpoint", config.name))


def plainly(one, array):
    """The embedding of one segment by the encoder alone."""
    model = one.info.model
    if one.info.modality == "video":
        windows = np.stack(video_windows(array, model.video.num_frames, 2))
        sides = [torch.full((len(windows),), side) for side in array.shape[1:3]]
        clips = plain_video_view(torch.from_numpy(windows), *sides, model.video.size)
    else:
        windows = np.stack(audio_windows(array, model.audio.num_samples, 2))
        clips = plain_audio_view(torch.from_numpy(windows), LogMel(model.audio))
    with torch.no_grad():
        return one.encoder.embed(clips).mean(dim=0).numpy()


def test_registered_encoders_embed_as_those_of_the_file(file, store):
    config = settings(file, store, model_prefix="same")
    names = [(one.name, one.version, one.alias_moved) for one in registered(config)]
    assert names == [("same-video", "1", False), ("same-audio", "1", False)]
    generator = np.random.default_rng(0)
    arrays = {
        "video": ("frames", generator.integers(0, 255, (8, 40, 50, 3), dtype=np.uint8)),
        "audio": ("waveform", generator.integers(-9999, 9999, 16_000).astype(np.int16)),
    }
    mlflow.set_tracking_uri(store)
    for one in read_encoders(config):
        assert one.info.provenance["role"] == "teacher"
        column, array = arrays[one.info.modality]
        model = mlflow.pyfunc.load_model(f"models:/same-{one.info.modality}/1")
        embedding = model.predict([{column: array}])
        np.testing.assert_allclose(embedding[0], plainly(one, array), rtol=1e-5, atol=1e-6)


def test_a_version_says_where_it_comes_from(file, store):
    config = settings(file, store, model_prefix="card", modality="audio", role="student")
    (one,) = registered(config)
    version = MlflowClient(store).get_model_version("card-audio", one.version)
    assert version.tags["xkd.imported_from"] == "checkpoint.pth.tar"
    assert version.tags["xkd.role"] == "student"
    assert len(version.tags["xkd.sha256"]) == 64
    assert "models:/card-audio/VERSION" in version.description
    assert "published with the method are for non-commercial use only" in version.description
    resolved = resolve_model("models:/card-audio/1", config.tracking)
    assert (resolved.sample_rate, resolved.clips.segment_seconds) == (16_000, 1.0)


def test_an_alias_is_set_if_asked_for_and_the_version_is_found_again(file, store):
    names = {"model_prefix": "alias", "modality": "video"}
    first = registered(settings(file, store, **names))
    assert first[0].reason == "registered without an alias"
    assert MlflowClient(store).get_registered_model("alias-video").aliases == {}
    again = registered(settings(file, store, **names, alias="published"))
    assert [(one.version, one.reason) for one in again] == [("1", "gets the alias published")]
    aliases = MlflowClient(store).get_registered_model("alias-video").aliases
    assert {name: str(number) for name, number in aliases.items()} == {"published": "1"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": None}, r"file \(.*checkpoint\.pth\.tar\): cls_token has width 48"),
        ({"video": {}, "audio": {}}, r"enc_pos_embed is for \d+ patches, but the clip \("),
        ({"video": VIDEO | {"size": 40}}, r"is for 64 patches, but .*video\.size\) has 4 x 5 x 5"),
    ],
)
def test_settings_that_do_not_fit_the_file_are_one_line(file, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        read_encoders(settings(file, **changes))
    assert "\n" not in str(caught.value)


def test_a_file_that_holds_more_than_weights_is_refused_in_one_line(tmp_path):
    file = tmp_path / "checkpoint.pth.tar"
    torch.save({"model": {"cls_token": torch.ones(1)}, "args": argparse.Namespace()}, file)
    message = rf"^{file} holds argparse\.Namespace, which is not weights; nothing in it was run$"
    with pytest.raises(UserError, match=message):
        read_encoders(settings(file))


def test_clips_of_two_lengths_are_refused(file):
    with pytest.raises(ValueError, match=r"\(1 s\) must equal .* \(4 s\)"):
        settings(file, audio={})

"""Trainings that begin from weights: their workers, what is recorded, what a resume does."""

import shutil
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from pipelines.config.promote import PromoteSettings
from pipelines.errors import Stopped
from pipelines.models.checkpoints import find_checkpoint, load_tensors, read_info
from pipelines.registry.promote import promote
from pipelines.training.initial_weights import TENSORS_FILE
from pipelines.training.pretrain import PretrainResult, pretrain
from tests.helpers.clip_datasets import write_dataset
from tests.helpers.tracking import run_at
from tests.helpers.training import curve, folder_of, tiny_config
from tests.helpers.weights import earlier_training, register, some_networks
from xkd_core.xkd import model_tensors

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

FROZEN = {"teacher": "frozen"}
SLOW_START = {"warmup_epochs": 1.0, "layer_decay": 0.5}


def train(config) -> PretrainResult:
    return pretrain(config, on_progress=lambda *_: None)


@pytest.mark.usefixtures("local_ray")
def test_workers_begin_from_the_version_that_the_alias_means(tmp_path):
    """An alias that moves later is for `test_initial_weights.py`."""
    dataset = write_dataset(tmp_path / "clips", 24, num_frames=10)
    model = tiny_config(tmp_path, dataset).model
    first = some_networks(model, 5)
    register(tmp_path, first, "video", model, alias="champion")
    config = tiny_config(
        tmp_path,
        dataset,
        init="models:/xkd-video@champion",
        objective=FROZEN,
        optimizer={**SLOW_START, "frozen_video_blocks": 1},
        epochs=2,
    )
    result = train(config)
    assert result.total_steps == 12
    assert not (folder_of(config) / TENSORS_FILE).exists()
    trained, given = load_tensors(result.checkpoint), model_tensors(first)
    for name, tensor in given.items():
        if name.startswith("video_teacher."):
            assert torch.equal(trained[name], tensor), name
        if name.startswith("video_student.blocks.0."):  # frozen, and a copy of the teacher
            teacher = name.replace("_student", "_teacher")
            assert torch.equal(trained[name], given[teacher]), name
    moved = "video_student.blocks.1.mlp.fc1.weight"
    assert not torch.equal(trained[moved], given[moved.replace("_student", "_teacher")])
    assert result.began_from["video"]["source"] == "models:/xkd-video/1"
    _check_lineage(result, tmp_path)


def _check_lineage(result: PretrainResult, home: Path) -> None:
    """The run, its checkpoint and a version that comes of it say what it began from."""
    client = MlflowClient(result.run.uri)
    data = client.get_run(result.run.run_id)
    version = client.get_model_version("xkd-video", "1")
    assert data.data.tags["xkd.init.video"] == "models:/xkd-video/1"
    assert data.data.tags["xkd.init.video.content"] == version.tags["xkd.content"]
    linked = {model.model_id for model in data.inputs.model_inputs}
    assert linked == {version.tags["xkd.model_id"]}
    assert read_info(result.checkpoint).began_from["video"]["version"] == "1"
    registered = promote(result.checkpoint, None, PromoteSettings(role="student"), run_at(home))
    number = next(one.version for one in registered if one.name == "xkd-video")
    new = client.get_model_version("xkd-video", number)
    assert new.tags["xkd.began_from"] == "models:/xkd-video/1"
    assert new.tags["xkd.began_from_content"] == version.tags["xkd.content"]
    assert "Its training began from `models:/xkd-video/1`, content" in new.description
    audio = client.get_model_version("xkd-audio", "1")
    assert "xkd.began_from" not in audio.tags


# `test_pretrain_survives.py` resumes to the bit, and `test_initial_weights.py` without the source.
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_resumed_run_equals_one_that_was_not_stopped_without_its_source(tmp_path):
    dataset = write_dataset(tmp_path / "clips", 24, num_frames=10)
    whole = tiny_config(tmp_path, dataset, name="whole", epochs=3, optimizer=SLOW_START)
    source = earlier_training(tmp_path, some_networks(whole.model))
    whole = whole.model_validate({**whole.model_dump(), "init": str(source)})
    train(whole)
    halves = whole.model_copy(update={"name": "halves"})
    with pytest.raises(Stopped):
        train(halves.model_copy(update={"max_seconds": 1e-3}))
    assert (folder_of(halves) / TENSORS_FILE).exists()
    shutil.rmtree(source)
    result = train(halves)
    assert 0 < result.first_step < result.total_steps
    one, other = (load_tensors(find_checkpoint(str(folder_of(c)))) for c in (whole, halves))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_sharded_workers_begin_from_the_same_weights(tmp_path):
    dataset = write_dataset(tmp_path / "clips", 24, num_frames=10)
    config = tiny_config(tmp_path, dataset)
    source = earlier_training(tmp_path, some_networks(config.model))
    losses = {}
    for parallelism, workers in (("ddp", 1), ("fsdp", 2)):
        name = f"{parallelism}{workers}"
        result = train(
            tiny_config(
                tmp_path,
                dataset,
                name=name,
                init=str(source),
                epochs=1,
                parallelism=parallelism,
                num_workers=workers,
                optimizer={**SLOW_START, "frozen_audio_blocks": 1},
                objective={**FROZEN, "alignment_weight": 0.0},
            )
        )
        losses[name] = list(curve(result.run).values())
        tensors, given = load_tensors(result.checkpoint), load_tensors(source)
        assert all(torch.equal(tensors[n], given[n]) for n in given if "_teacher" in n)
    assert losses["fsdp2"] == pytest.approx(losses["ddp1"], rel=1e-3)

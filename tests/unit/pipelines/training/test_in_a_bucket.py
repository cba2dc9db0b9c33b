"""A training in a bucket is to the bit the training on a disk, also when it is killed."""

import threading

import pytest
import torch

from pipelines.config.evaluate import EvaluateConfig, EvaluateSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.errors import UserError
from pipelines.evaluation.checks import networks_to_score
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.features import features_of
from pipelines.evaluation.networks import checkpoint_source, load_network
from pipelines.evaluation.probes.folds import score_folds
from pipelines.evaluation.scores_file import read_scores
from pipelines.models.checkpoints import (
    MODEL_FILE,
    TRAINING_FILE,
    find_checkpoint,
    is_complete,
    load_optimizer_state,
    load_tensors,
)
from pipelines.progress import ignore_progress
from pipelines.storage import RemotePath, path_of
from pipelines.tracking.run_folder import RunFolder
from pipelines.training.checks import check_pretrain
from pipelines.training.pretrain import pretrain
from tests.helpers.bucket import BUCKET, serving, wait_until
from tests.helpers.clip_datasets import write_dataset
from tests.helpers.training import curve, kill_worker, tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
HOME = f"s3://{BUCKET}/a home"
SPLITS = ("train", "train", "train", "val")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def datasets(server, tmp_path_factory):
    """The same clips on the disk and in the bucket."""
    local = tmp_path_factory.mktemp("data") / "clips"
    remote = path_of(f"{HOME}/clips")
    for folder in (local, remote):
        write_dataset(folder, 24, num_frames=10, split=lambda number: SPLITS[number % 4])
    return str(local), str(remote)


@pytest.fixture(scope="module")
def undisturbed(server, datasets, ray_of_this_environment, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    config = tiny_config(home, datasets[0], epochs=3, checkpoint_every=4)
    return home, config, train(config)


def train(config):
    assert check_pretrain(config) == []
    return pretrain(config, on_progress=lambda *_: None)


def remote_config(home, datasets, name, **settings):
    values = {"output": f"{HOME}/trainings/", "epochs": 3, "checkpoint_every": 4, "name": name}
    return tiny_config(home, datasets[1], **(values | settings))


def tensors(checkpoint):
    state = load_optimizer_state(checkpoint)["state"]
    moments = {f"{i}.{name}": v for i, values in state.items() for name, v in values.items()}
    return {**load_tensors(checkpoint), **moments}


def assert_equal(result, expected):
    assert curve(result.run) == curve(expected.run)
    ours, theirs = tensors(result.checkpoint), tensors(expected.checkpoint)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(value)), name


def test_checkpoints_go_to_the_bucket_and_evaluation_reads_them(server, datasets, undisturbed):
    home, local_config, expected = undisturbed
    config = remote_config(home, datasets, "plain")
    result = train(config)
    assert_equal(result, expected)
    assert isinstance(result.checkpoint, RemotePath)
    assert str(result.checkpoint).startswith(f"{HOME}/trainings/plain/step_")
    names = server.names("a home/trainings/plain")
    assert sum(name.endswith(MODEL_FILE) for name in names) == config.checkpoints_kept
    assert not [name for name in names if ".tmp" in name]
    assert train(config).first_step == result.total_steps  # nothing is left to do
    with RunFolder(path_of(f"{HOME}/trainings/plain")).locked(), pytest.raises(UserError) as error:
        train(config)
    assert "is being written by process" in str(error.value)

    given = str(result.checkpoint)
    settings = EvaluateConfig(
        checkpoint=given,
        dataset=datasets[1],
        output=f"{HOME}/scores",
        tracking=local_config.tracking,
        untrained_baseline=False,
        measures=("knn",),
    )
    source = checkpoint_source(result.checkpoint, given, settings.role)
    networks = networks_to_score(settings, (source,), ())
    evaluation = evaluate(settings, networks, on_progress=lambda *_: None)
    assert str(evaluation.scores_file).startswith(f"{HOME}/scores/")
    scores = read_scores(evaluation.scores_file).found
    # The same network over the same clips on the disk, in this process.
    source = checkpoint_source(expected.checkpoint, "", settings.role)
    here = features_of(
        {"trained": load_network((source,))},
        ClipDataset.open(datasets[0]),
        EvaluateSettings(untrained_baseline=False, measures=("knn",)),
        ignore_progress,
    )
    assert scores.figures() == score_folds(here, settings)[0].figures()
    with pytest.raises(UserError, match="nowhere"):
        find_checkpoint(f"{HOME}/nowhere")


@pytest.mark.slow
def test_a_checkpoint_whose_upload_was_cut_off_is_not_used(server, datasets, undisturbed):
    home, _, expected = undisturbed
    config = remote_config(home, datasets, "cut")
    first = train(config)
    # As if the driver had been killed before the list of files was written.
    (first.checkpoint / TRAINING_FILE).unlink()
    assert not is_complete(first.checkpoint)
    before = find_checkpoint(f"{HOME}/trainings/cut")
    assert before.name == "step_000000012"
    resumed = train(remote_config(home, datasets, "resumed", resume=str(before)))
    result = train(config)
    assert resumed.first_step == result.first_step == 12
    assert_equal(result, expected)
    ours, theirs = tensors(resumed.checkpoint), tensors(expected.checkpoint)
    assert all(torch.equal(torch.as_tensor(ours[n]), torch.as_tensor(theirs[n])) for n in theirs)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", [8.0, 60.0])
def test_a_bucket_that_is_away_delays_a_training(server, datasets, undisturbed, seconds):
    home, _, expected = undisturbed
    config = remote_config(home, datasets, f"away-for-{seconds:g}-s")
    server.overloaded_for(seconds)
    assert_equal(train(config), expected)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_killed_while_it_uploads_a_checkpoint(server, datasets, undisturbed):
    """The files of the checkpoint are there in part; the one that makes it whole is not."""
    home, _, expected = undisturbed
    config = remote_config(home, datasets, "killed")
    folder = "a home/trainings/killed"
    killed = []

    def is_uploading() -> bool:
        names = [name.split("/") for name in server.names(folder) if name.startswith("step_")]
        steps = {step for step, *_ in names} - {s for s, name, *_ in names if name == TRAINING_FILE}
        killed.extend(steps)
        return bool(steps)

    def kill_then() -> None:
        wait_until(is_uploading, 300)
        kill_worker()
        server.slow(False)

    server.slow(True)
    thread = threading.Thread(target=kill_then)
    thread.start()
    try:
        result = train(config)
    finally:
        thread.join()
        server.slow(False)
    assert killed
    assert_equal(result, expected)
    whole = [name for name in server.names(folder) if name.endswith(TRAINING_FILE)]
    assert {name.split("/")[0] for name in server.names(folder) if name.startswith("step_")} == {
        name.split("/")[0] for name in whole
    }


def test_a_read_only_bucket_fails_with_a_reason(server, datasets, undisturbed):
    home, _, _ = undisturbed
    exclude = path_of(f"{HOME}/exclude.txt")
    exclude.write_bytes(b"# none\n")
    config = remote_config(home, datasets, "excluded", exclude=str(exclude))
    assert check_pretrain(config) == []
    server.read_only(True)
    try:
        with pytest.raises(OSError, match="ACCESS_DENIED"):
            pretrain(config, on_progress=lambda *_: None)
    finally:
        server.read_only(False)

"""What a training refuses, and that an interrupted one is waited for, however its workers end."""

import json
import os
import signal
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from training import folder_of, tiny_config, tiny_dataset

from pipelines.checkpoints import TrainingInfo, checkpoint_name, save_checkpoint
from pipelines.clip_dataset import ClipDataset
from pipelines.errors import JobFailed, UserError
from pipelines.pretrain import (
    LOCK_FILE,
    RUN_FILE,
    _fit_unless_interrupted,
    _open_run,
    check_pretrain,
    pretrain,
    worker_resources,
)
from pipelines.shards import locked
from pipelines.tracking import RunRef

OUTCOME = {"next_step": 5, "total_steps": 9, "not_finite": None, "has_failed": False}


@pytest.fixture
def interrupted_fit():
    """A training that is interrupted while it runs and ends some time after it was asked to."""
    asked, ended = threading.Event(), []

    def fit():
        threading.Event().wait(0.3)  # until the training is waited for
        os.kill(os.getpid(), signal.SIGINT)
        asked.wait(30)
        threading.Event().wait(0.3)
        ended.append(asked.is_set())
        return OUTCOME

    # A shell that starts the tests in the background has its children ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield fit, asked, ended
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_the_checkpoint_and_says_what_is_saved(interrupted_fit):
    fit, asked, ended = interrupted_fit
    with pytest.raises(KeyboardInterrupt, match="5 of 9 steps are done and saved"):
        _fit_unless_interrupted(fit, asked.set)
    assert ended == [True]


def test_a_failure_after_ctrl_c_is_told(interrupted_fit):
    fit, asked, _ = interrupted_fit

    def fail():
        fit()
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        _fit_unless_interrupted(fail, asked.set)


def quiet(*_, **__):
    """Where progress goes, and what a test does not need."""


def leave_checkpoint(config, dataset_id="made24", run_id="earlier"):
    """Leaves what a training with these settings on these clips would, without weights."""
    place = folder_of(config) / checkpoint_name(7)
    values = config.model_dump(mode="json")
    save_checkpoint(place, {}, {}, TrainingInfo(7, 60, 6.0, values, dataset_id, run_id, "code"))
    return place


def test_a_run_with_other_settings_is_not_taken_for_this_one(tmp_path):
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "clips"))
    folder_of(config).mkdir(parents=True)
    other = {**config.model_dump(mode="json"), "seed": 5}
    (folder_of(config) / RUN_FILE).write_text(json.dumps({"run_id": "a", "config": other}))
    with pytest.raises(UserError, match="seed is 5 there and 0 here"):
        pretrain(config, on_progress=quiet)


@pytest.mark.parametrize(
    ("workers", "nodes", "cpus"),
    [
        (1, [16], 16),
        (3, [16], 5),
        (1, [8, 8], 8),  # not 16, which no node has
        (3, [8, 8], 4),
        (2, [2, 0, 12], 6),
        (4, [2], 1),  # an elastic group takes what there is
    ],
)
def test_cpus_are_shared_out_node_by_node(tmp_path, workers, nodes, cpus):
    config = tiny_config(tmp_path, tmp_path, num_workers=[1, workers], batch_size=24)
    config = config.model_copy(update={"cpus_per_worker": None})
    assert worker_resources(config, [{"CPU": have} for have in nodes]) == {"CPU": cpus}


@pytest.mark.parametrize(
    ("settings", "nodes", "message"),
    [
        ({"cpus_per_worker": 9}, [{"CPU": 8}] * 2, r"cpus_per_worker \(9\) .* the 8 CPUs of the"),
        (
            {"num_workers": 2, "cpus_per_worker": 3},
            [{"CPU": 5}, {"CPU": 2}],
            r"num_workers \(2\) needs 2 x 3 CPUs, but .* have 5 CPUs; 2 CPUs: room for 1",
        ),
        (
            {"use_gpu": True},
            [{"CPU": 8}],
            r"num_workers \(1\) needs 1 x 1 CPUs and 1 x 1 GPUs, .* 8 CPUs, 0 GPUs: room for 0",
        ),
    ],
)
def test_workers_that_fit_on_no_node_are_refused(tmp_path, settings, nodes, message):
    with pytest.raises(UserError, match=message):
        worker_resources(tiny_config(tmp_path, tmp_path, **settings), nodes)


@pytest.mark.parametrize("is_own", [True, False])
def test_clips_that_changed_since_the_checkpoint_are_found_before_the_workers_are(tmp_path, is_own):
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "clips"))
    place = leave_checkpoint(config)
    if not is_own:
        config = config.model_copy(update={"name": "second", "resume": str(place)})
    assert check_pretrain(config) == []
    leave_checkpoint(tiny_config(tmp_path, tmp_path / "clips"), "grown25")
    message = "trained on dataset grown25, but dataset .* is made24 now"
    (mistake,) = check_pretrain(config)
    with pytest.raises(UserError, match=message) as raised:
        pretrain(config, on_progress=quiet)
    assert mistake == str(raised.value)


def test_a_second_training_of_that_name_is_refused(tmp_path):
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "clips"))
    left = leave_checkpoint(config)
    with (
        locked(folder_of(config) / LOCK_FILE, "the first"),
        pytest.raises(
            UserError, match=rf"run \(.*tiny\) is being written by process {os.getpid()}"
        ),
    ):
        pretrain(config, on_progress=quiet)
    assert left.exists()


def test_a_training_that_begins_from_another_has_a_run_of_its_own(tmp_path):
    first = tiny_config(tmp_path, tmp_path)
    folder_of(first).mkdir(parents=True)
    run = _open_run(first, folder_of(first), None)
    place = leave_checkpoint(first, run_id=run.run_id)
    (folder_of(first) / RUN_FILE).unlink()
    again = first.model_copy(update={"resume": str(place)})
    assert _open_run(again, folder_of(again), None) == run
    second = again.model_copy(update={"name": "second"})
    folder_of(second).mkdir()
    assert _open_run(second, folder_of(second), None).run_id != run.run_id


def test_the_password_of_the_server_is_not_written_down(tmp_path, monkeypatch):
    """Neither in the run's folder nor in what workers get, which they put into checkpoints."""
    opened = RunRef(f"sqlite:///{tmp_path}/mlflow.db", "0", "run")
    handed_on = {}

    def fit(_config, _scaling, values, _callbacks):
        handed_on.update(values)
        raise JobFailed("enough seen")

    for name, instead in {
        "open_run": lambda *_, **__: opened,
        "log_dataset": quiet,
        "tracked": nullcontext,
        "watched_board": lambda _: nullcontext(
            SimpleNamespace(ask_to_stop=SimpleNamespace(remote=quiet))
        ),
        "_scaling": quiet,
        "_fit": fit,
    }.items():
        monkeypatch.setattr(f"pipelines.pretrain.{name}", instead)
    server = {"uri": "http://me:p@ss@mlflow.example:5000"}
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "clips"), tracking=server)
    with pytest.raises(JobFailed, match="enough seen"):
        pretrain(config, on_progress=quiet)
    for written in ((folder_of(config) / RUN_FILE).read_text(), json.dumps(handed_on["config"])):
        assert "http://***@mlflow.example:5000" in written
        assert "ss@" not in written


def test_a_list_of_excluded_clips_that_changed_is_refused(tmp_path):
    dataset = tiny_dataset(tmp_path / "clips")
    ids = ClipDataset.open(dataset).index.clip_id.tolist()
    exclude = tmp_path / "leaks.txt"
    exclude.write_text("\n".join(ids[:3]))
    config = tiny_config(tmp_path, dataset, exclude=str(exclude))
    folder_of(config).mkdir(parents=True)
    _open_run(config, folder_of(config), None)
    exclude.write_text("# in another order\n" + "\n".join(reversed(ids[:3])))
    assert check_pretrain(config) == []
    exclude.write_text("\n".join(ids[:4]))
    (mistake,) = check_pretrain(config)
    assert f"exclude ({exclude}) names other clips than when the run tiny began" in mistake
    exclude.unlink()
    (mistake,) = check_pretrain(config)
    assert "cannot be read" in mistake

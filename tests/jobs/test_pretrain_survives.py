"""A training that is killed, stopped or cut short ends as if nothing had happened.

All of it is done for real: signals to processes, a node that goes, a server that goes, a disk
that is full. Trainings are of seconds (`tests/helpers/training.py`).
"""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from pipelines.config.pretrain import PretrainConfig
from pipelines.errors import JobFailed, Stopped
from pipelines.models.checkpoints import find_checkpoint, is_complete, load_tensors, read_info
from pipelines.tracking.runs import RunRef
from pipelines.training.checks import check_pretrain
from pipelines.training.pretrain import PretrainResult, pretrain
from ray_jobs.cli.cluster import without_dashboard
from ray_jobs.cli.environment import WORKER_SETUP
from tests.helpers.clip_datasets import write_dataset
from tests.helpers.drains import drain
from tests.helpers.local_ray import job_environment
from tests.helpers.training import (
    curve,
    final_state,
    folder_of,
    kill_worker,
    last_step,
    program,
    serving_mlflow,
    tiny_config,
    tiny_dataset,
    train_workers,
    unused_port,
    wait_for_checkpoint,
    wait_until,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]

NUM_STEPS = 60
SPLITS = ("train", "train", "train", "val")
REDONE = 1e-4
"""Share by which a loss may change if several workers, or fewer than before, do a step again."""
UNALIGNED = {"objective": {"alignment_weight": 0.0}}
"""MMD compares the clips that are in memory together: all workers' but one part's alone."""
OUTAGE_SECONDS = 60.0
SYSTEM_METRIC = "system/cpu_utilization_percentage"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("data") / "clips")


@pytest.fixture(scope="module")
def undisturbed(
    local_ray: None, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PretrainConfig, PretrainResult]:
    """What one worker gives that nobody disturbs."""
    config = tiny_config(tmp_path_factory.mktemp("home"), dataset)
    return config, train(config)


def train(config: PretrainConfig, disturb=None, *, after: int = 15) -> PretrainResult:
    """Trains; `disturb` is called once a checkpoint of `after` steps is on disk."""
    assert check_pretrain(config) == []
    threads = []
    if disturb is not None:

        def wait_and_disturb() -> None:
            wait_for_checkpoint(config, after)
            disturb()

        threads.append(threading.Thread(target=wait_and_disturb))
    for thread in threads:
        thread.start()
    try:
        return pretrain(config, on_progress=lambda *_: None)
    finally:
        for thread in threads:
            thread.join()


def assert_equal_to_the_bit(config, result, undisturbed) -> None:
    expected_config, expected = undisturbed
    assert curve(result.run) == curve(expected.run)
    assert list(curve(result.run)) == list(range(NUM_STEPS))
    assert _last_health(config) == _last_health(expected_config)
    state, expected_state = final_state(config), final_state(expected_config)
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected_state.items())


def _last_health(config: PretrainConfig) -> object:
    return read_info(find_checkpoint(str(folder_of(config)))).health


def assert_close(one: PretrainResult, other: PretrainResult) -> None:
    """For several workers: their gradients are summed in another order."""
    expected = curve(other.run, redone=REDONE)
    assert curve(one.run, redone=REDONE) == pytest.approx(expected, rel=1e-3)
    assert list(expected) == list(range(NUM_STEPS))


def test_a_killed_worker_changes_no_bit(undisturbed, dataset, tmp_path):
    config = tiny_config(tmp_path, dataset)
    result = train(config, kill_worker)
    assert 0 < result.first_step < NUM_STEPS
    assert_equal_to_the_bit(config, result, undisturbed)
    run = result.run.client().get_run(result.run.run_id)
    assert run.info.status == "FINISHED"
    # What is kept is what Ray Train knows: nothing is left over from the worker that died.
    kept = sorted(path.name for path in folder_of(config).iterdir() if path.is_dir())
    assert kept == ["step_000000050", "step_000000060"]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_scores_on_the_way_change_no_bit(num_workers, undisturbed, dataset, tmp_path):
    """Scored each epoch of 6 steps, and killed in between."""
    labelled = write_dataset(
        tmp_path / "labelled", 12, num_frames=10, split=lambda clip: SPLITS[clip % 4]
    )
    knn = {"dataset": str(labelled), "every_epochs": 1.0}
    config = tiny_config(tmp_path, dataset, health={"knn": knn}, num_workers=num_workers)
    result = train(config, kill_worker)
    assert 0 < result.first_step < NUM_STEPS
    if num_workers == 1:
        assert_equal_to_the_bit(config, result, undisturbed)
    else:
        assert_close(result, undisturbed[1])
    for side in ("video", "audio"):
        scores = curve(result.run, f"health/{side}/knn", redone=1.0)
        assert list(scores) == list(range(0, NUM_STEPS + 1, 6))
        assert all(0.0 <= value <= 1.0 for value in scores.values())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM at a worker", "max_seconds"])
def test_a_stop_in_order_goes_on_to_the_bit(how, undisturbed, dataset, tmp_path):
    config = tiny_config(tmp_path, dataset)
    if how == "max_seconds":
        stopped = config.model_copy(update={"max_seconds": 1e-3})
        match = r"max_seconds \(0.001\) are over: 1 of 60 steps done and saved. The same"
        with pytest.raises(Stopped, match=match):
            train(stopped)
    else:
        with pytest.raises(Stopped, match=r"a worker got SIGTERM: \d+ of 60 steps done"):
            train(config, lambda: kill_worker(how=signal.SIGTERM))
    step = last_step(config)
    assert 0 < step < NUM_STEPS
    run_id = read_info(find_checkpoint(str(folder_of(config)))).run_id
    result = train(config)
    assert result.first_step == step
    assert result.run.run_id == run_id
    assert_equal_to_the_bit(config, result, undisturbed)


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed(local_ray, dataset, tmp_path):
    calm = tiny_config(tmp_path, dataset, name="calm", num_workers=2)
    killed = tiny_config(tmp_path, dataset, name="killed", num_workers=2)
    expected = train(calm)
    result = train(killed, lambda: kill_worker(number=1))
    assert 0 < result.first_step < NUM_STEPS
    assert_close(result, expected)
    state, expected_state = final_state(killed), final_state(calm)
    for name, tensor in expected_state.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
def test_every_number_of_workers_and_way_to_share_sees_the_same_clips(
    undisturbed, dataset, tmp_path
):
    """Two workers, stopped, one, stopped, two sharded ones in parts: the curve of one worker."""
    expected = undisturbed[1]
    config = tiny_config(tmp_path, dataset, name="many", num_workers=2)
    changed = [
        {"num_workers": 2},
        {"num_workers": 1, "activation_checkpointing": True},
        {"num_workers": 2, "parallelism": "fsdp"},
    ]
    for number, settings in enumerate(changed[:-1], start=1):
        with pytest.raises(Stopped):
            train(
                config.model_copy(update=settings),
                lambda: kill_worker(how=signal.SIGTERM),
                after=number * 15,
            )
        assert last_step(config) < NUM_STEPS
    result = train(config.model_copy(update=changed[-1]))
    assert result.first_step > 0
    assert_close(result, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"num_workers": 2, "accumulation_steps": 1, "parallelism": "fsdp"},
        {
            "num_workers": 1,
            "accumulation_steps": 2,
            "activation_checkpointing": True,
            **UNALIGNED,
        },
    ],
    ids=["fsdp", "accumulation"],
)
def test_each_way_gives_the_losses_of_one_worker(settings, local_ray, dataset, tmp_path):
    method = {"objective": settings["objective"]} if "objective" in settings else {}
    expected = train(tiny_config(tmp_path, dataset, name="one", **method))
    result = train(tiny_config(tmp_path, dataset, name="other", **settings))
    assert_close(result, expected)


@pytest.mark.slow
def test_bfloat16_runs_on_a_cpu(undisturbed, dataset, tmp_path):
    result = train(tiny_config(tmp_path, dataset, precision="bfloat16"))
    found, expected = curve(result.run), curve(undisturbed[1].run)
    assert found.keys() == expected.keys()
    assert found != expected
    assert found[0] == pytest.approx(expected[0], rel=0.02)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_step_and_terms(local_ray, dataset, tmp_path):
    optimizer = {"warmup_epochs": 0.5, "learning_rate": 1e30}  # step 0 has a rate of 0
    config = tiny_config(tmp_path, dataset, optimizer=optimizer, checkpoint_every=1, log_every=50)
    with pytest.raises(JobFailed, match=r"step 2 has a loss that is not finite \(loss/total, "):
        train(config)
    good = find_checkpoint(str(folder_of(config)))
    assert read_info(good).next_step == 2
    assert all(tensor.isfinite().all() for tensor in load_tensors(good).values())


@pytest.mark.slow
def test_a_full_disk_fails_in_words_and_keeps_the_last_checkpoint(local_ray, dataset, tmp_path):
    small = tmp_path / "runs"
    small.mkdir()
    with _small_disk(small, num_bytes=4_000_000):
        config = tiny_config(tmp_path, dataset, checkpoints_kept=50)
        with pytest.raises(JobFailed) as failure:
            train(config)
        text = str(failure.value)
        assert "a checkpoint could not be written" in text
        assert "the disk is full" in text or "No space left" in text
        good = find_checkpoint(str(folder_of(config)))
        assert str(good) in text
        assert not list(folder_of(config).glob(".step_*"))
        # Room again: the same command goes on.
        for path in folder_of(config).glob("step_*"):
            assert is_complete(path)
        step = last_step(config)
        _mount(small, 40_000_000, "remount")
        result = train(config)
        assert result.first_step == step


@contextlib.contextmanager
def _small_disk(folder: Path, num_bytes: int) -> Iterator[None]:
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root can mount a small disk")
    try:
        _mount(folder, num_bytes)
    except subprocess.CalledProcessError:
        pytest.skip("this system lets nobody mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _mount(folder: Path, num_bytes: int, *options: str) -> None:
    text = ",".join([f"size={num_bytes}", *options])
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", text, "tmpfs", folder], check=True, capture_output=True
    )


@pytest.mark.slow
def test_a_server_that_is_away_for_a_minute_misses_nothing(local_ray, dataset, tmp_path):
    port, ends = unused_port(), []
    uri = f"http://127.0.0.1:{port}"
    config = tiny_config(
        tmp_path, dataset, tracking={"uri": uri}, epochs=10_000, log_every=10, checkpoint_every=50
    )

    def train_until_told() -> None:
        with pytest.raises(Stopped, match="a worker got SIGTERM") as end:
            train(config)
        ends.append(end)

    training = threading.Thread(target=train_until_told)
    with serving_mlflow(tmp_path / "server", port):
        training.start()
        wait_for_checkpoint(config, 50)
    # The server is gone. Training goes on meanwhile.
    step = last_step(config)
    time.sleep(OUTAGE_SECONDS)
    assert last_step(config) >= step + 100
    with serving_mlflow(tmp_path / "server", port):
        back = time.time() * 1000
        run = RunRef(uri, "", read_info(find_checkpoint(str(folder_of(config)))).run_id)

        def machine_is_watched_again() -> bool:
            history = run.client().get_metric_history(run.run_id, SYSTEM_METRIC)
            return any(metric.timestamp > back for metric in history)

        wait_until(machine_is_watched_again)
        kill_worker(how=signal.SIGTERM)
        training.join()
        assert len(ends) == 1
        assert list(curve(run)) == list(range(0, last_step(config), 10))
        assert run.client().get_run(run.run_id).info.status == "KILLED"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code", "says"),
    [
        (signal.SIGKILL, -signal.SIGKILL, ""),
        (signal.SIGTERM, 75, "pretrain: terminated. "),
        (signal.SIGINT, 130, "pretrain: interrupted. "),
    ],
    ids=["SIGKILL", "SIGTERM", "Ctrl-C"],
)
def test_a_stopped_driver_goes_on_to_the_bit(how, code, says, undisturbed, dataset, tmp_path):
    config = tiny_config(tmp_path, dataset)
    with program("pretrain", config, tmp_path) as driver:
        wait_for_checkpoint(config, 15)
        children = psutil.Process(driver.pid).children(recursive=True)
        # Ctrl-C in a terminal reaches the driver and all that it started.
        send = os.killpg if how == signal.SIGINT else os.kill
        send(driver.pid, how)
        _, errors = driver.communicate(timeout=600)
    assert driver.returncode == code, errors
    wait_until(lambda: not any(child.is_running() for child in children))
    assert "Traceback" not in errors
    step = last_step(config)
    assert 0 < step < NUM_STEPS
    if says:
        assert f"{says}{step} of 60 steps done and saved. " in errors
        assert "the same command continues from the last one" in errors
    with program("pretrain", config, tmp_path) as again:
        out, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    assert f"{step} of them done before" in out + errors
    run = read_info(find_checkpoint(str(folder_of(config)))).run_id
    reference = undisturbed[1].run
    result = PretrainResult(
        find_checkpoint(str(folder_of(config))),
        type(reference)(config.tracking.uri, reference.experiment_id, run),
        NUM_STEPS,
        step,
        0.0,
    )
    assert len(result.run.client().search_runs([reference.experiment_id])) == 1
    assert_equal_to_the_bit(config, result, undisturbed)


@pytest.mark.slow
def test_a_lost_node_shrinks_an_elastic_group(dataset, tmp_path):
    expected_config = tiny_config(tmp_path, dataset, name="one", epochs=20)
    config = tiny_config(tmp_path, dataset, name="elastic", num_workers=(1, 2), epochs=20)
    with _cluster([1, 1]) as (cluster, (node,)):
        expected = train(expected_config)
        result = train(config, lambda: cluster.remove_node(node, allow_graceful=False), after=20)
    assert 0 < result.first_step < 120
    assert read_info(result.checkpoint).config["num_workers"] == [1, 2]
    found = curve(result.run, redone=REDONE)
    assert list(found) == list(range(120))
    assert found == pytest.approx(curve(expected.run), rel=1e-2)


@pytest.mark.slow
def test_a_lost_node_is_replaced_in_a_group_of_fixed_size(dataset, tmp_path):
    calm = tiny_config(tmp_path, dataset, name="calm", num_workers=2)
    config = tiny_config(tmp_path, dataset, name="lost", num_workers=2)
    with _cluster([0, 1, 1, 1]) as (cluster, nodes):

        def lose_a_node_with_a_worker() -> None:
            busy = next(node for node in nodes if train_workers(_raylet(node)))
            cluster.remove_node(busy, allow_graceful=False)

        expected = train(calm)
        result = train(config, lose_a_node_with_a_worker)
    assert 0 < result.first_step < NUM_STEPS
    assert_close(result, expected)
    run = result.run.client().get_run(result.run.run_id)
    assert run.info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize("num_spare", [1, 0], ids=["another node", "no other node"])
def test_a_drained_node_costs_no_step(num_spare, dataset, tmp_path, caplog):
    """A notice of 20 s at the node that trains, with the next checkpoint far away."""
    far = {"checkpoint_every": 1_000_000, "epochs": 100, "log_every": 1}
    config = tiny_config(tmp_path, dataset, **far)
    with _cluster([0, *[1] * (1 + num_spare)]) as (cluster, nodes):
        board = []

        def drain_the_busy_node(done: float, _total: float, _note: str) -> None:
            if done >= 20 and not board:
                busy = next(node for node in nodes if train_workers(_raylet(node)))
                drain(cluster, busy.node_id, seconds=20)
                board.append(threading.Timer(20, lambda: cluster.remove_node(busy, False)))
                board[0].start()

        def train_drained() -> PretrainResult:
            return pretrain(config, on_progress=drain_the_busy_node)

        if num_spare:
            result = train_drained()
            assert result.first_step == 0
            run = result.run
        else:
            with pytest.raises(
                Stopped, match=r"a node is about to leave \(\w{12}\): .* saved. The"
            ):
                train_drained()
            run = RunRef(
                config.tracking.uri, "", read_info(find_checkpoint(str(folder_of(config)))).run_id
            )
        board[0].join()
    last = last_step(config)
    assert last == 600 if num_spare else 20 <= last < 600
    history = run.client().get_metric_history(run.run_id, "loss/total")
    assert sorted(metric.step for metric in history) == list(range(last))  # each step once
    assert ("continuing elsewhere" in caplog.text) == bool(num_spare)


def _raylet(node) -> int:
    """The process whose children are a node's workers."""
    return int(node.all_processes["raylet"][0].process.pid)


@contextlib.contextmanager
def _cluster(num_cpus: Sequence[int]) -> Iterator[tuple[Cluster, list[object]]]:
    """A head and nodes with so many CPUs; gives the nodes beside the head."""
    if ray.is_initialized():
        ray.shutdown()
    memory = {"object_store_memory": 100_000_000}
    head = {"num_cpus": num_cpus[0], "gcs_server_port": unused_port(), **without_dashboard()}
    with job_environment():
        cluster = Cluster(initialize_head=True, head_node_args={**head, **memory})
        try:
            nodes = [cluster.add_node(num_cpus=number, **memory) for number in num_cpus[1:]]
            ray.init(address=cluster.address, runtime_env=dict(WORKER_SETUP))
            cluster.wait_for_nodes()
            yield cluster, nodes
        finally:
            ray.shutdown()
            cluster.shutdown()


def test_sizes_that_do_not_divide_are_refused_before_work(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"batch_size \(4\) must be a multiple of num_workers \(3"):
        tiny_config(tmp_path, dataset, num_workers=(1, 3))
    with pytest.raises(ValueError, match=r"num_workers \(2, 1\) must begin with the smaller"):
        tiny_config(tmp_path, dataset, num_workers=(2, 1))
    with pytest.raises(ValueError, match=r"at least 2 for each of num_workers \(2\) times accum"):
        tiny_config(tmp_path, dataset, num_workers=2, accumulation_steps=2)
    assert train_workers() == []

"""Trainings of seconds: a clip dataset of tiny clips and the settings of a micro model for it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import yaml
from mlflow.tracking import MlflowClient

from pipelines.config.pretrain import PretrainConfig
from pipelines.models.checkpoints import (
    TrainingInfo,
    checkpoint_name,
    find_checkpoint,
    load_optimizer_state,
    load_tensors,
    read_info,
    save_checkpoint,
)
from pipelines.tracking.runs import RunRef
from tests.helpers.clip_datasets import write_dataset

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_CLIPS = 24

MODEL = {
    "video": {
        "num_frames": 8,
        "frame_rate": 4.0,
        "size": 16,
        "local_num_frames": 4,
        "local_size": 16,
        "tubelet_size": 2,
        "patch_size": 8,
    },
    "audio": {
        "num_samples": 1600,
        "sample_rate": 800,
        "local_num_samples": 512,
        "num_mels": 16,
        "n_fft": 128,
        "hop_length": 34,
        "patch_frames": 8,
    },
    "encoder": {"width": 32, "depth": 2, "num_heads": 2},
    "decoder": {"width": 16, "depth": 1, "num_heads": 2},
    "head": {"hidden_width": 32, "bottleneck_width": 16, "output_width": 64},
}


def tiny_dataset(folder: Path) -> Path:
    """Clips whose colors and sounds differ."""
    return write_dataset(folder, NUM_CLIPS, num_frames=10)


def tiny_config(home: Path, dataset: Path, **settings) -> PretrainConfig:
    """Sixty steps of four clips, all of them logged, with a checkpoint every tenth."""
    values = {
        "name": "tiny",
        "dataset": str(dataset),
        "output": str(home / "runs"),
        "tracking": {"uri": f"sqlite:///{home}/mlflow.db"},
        "model": MODEL,
        "optimizer": {"warmup_epochs": 1.0, "learning_rate": 1.0e-3},
        "epochs": 10,
        "batch_size": 4,
        "cpus_per_worker": 1,
        "log_every": 1,
        "checkpoint_every": 10,
    }
    return PretrainConfig.model_validate(values | settings)


def folder_of(config: PretrainConfig) -> Path:
    return Path(config.output) / config.name


def leave_checkpoint(
    config: PretrainConfig,
    dataset_id: str = "made24",
    run_id: str = "earlier",
    *,
    next_step: int = 7,
    exclude_sha256: str | None = None,
    order_sha256: str | None = None,
) -> Path:
    """Leaves what a training with these settings on these clips would, without weights."""
    path = folder_of(config) / checkpoint_name(next_step)
    values = config.model_dump(mode="json")
    info = TrainingInfo(
        next_step,
        60,
        6.0,
        values,
        dataset_id,
        run_id,
        "code",
        exclude_sha256,
        order_sha256,
    )
    save_checkpoint(path, {}, {}, info)
    return path


def curve(run: RunRef, name: str = "loss/total", *, redone: float = 0.0) -> dict[int, float]:
    """A metric by step, the last value of each.

    A step that was done again must have given the same as before, to the bit or, with workers whose
    sums may come in another order, within a share `redone` of it.
    """
    values: dict[int, float] = {}
    history = MlflowClient(run.uri).get_metric_history(run.run_id, name)
    for metric in sorted(history, key=lambda metric: metric.timestamp):
        before = values.get(metric.step, metric.value)
        assert abs(before - metric.value) <= redone * abs(before), (name, metric.step)
        values[metric.step] = metric.value
    return dict(sorted(values.items()))


def final_state(config: PretrainConfig) -> dict[str, object]:
    """Everything that the last checkpoint holds: tensors by name, and the optimizer's."""
    checkpoint = find_checkpoint(str(folder_of(config)))
    optimizer = load_optimizer_state(checkpoint)["state"]
    moments = {
        f"{index}.{name}": value
        for index, values in optimizer.items()
        for name, value in values.items()
    }
    return {**load_tensors(checkpoint), **moments}


def last_step(config: PretrainConfig) -> int:
    return read_info(find_checkpoint(str(folder_of(config)))).next_step


def wait_for_checkpoint(config: PretrainConfig, at_least: int, timeout: float = 600.0) -> None:
    """Waits until a checkpoint of so many steps is on disk."""
    wait_until(lambda: _steps(folder_of(config)) >= at_least, timeout)


def _steps(folder: Path) -> int:
    return max((int(path.name.split("_")[1]) for path in folder.glob("step_*")), default=-1)


def wait_until(is_true, timeout: float = 600.0) -> None:
    end = time.monotonic() + timeout
    while not is_true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def train_workers(of: int | None = None) -> list[psutil.Process]:
    """The processes of Ray Train's workers among the descendants of a process."""
    found = []
    for process in psutil.Process(of or os.getpid()).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_worker(of: int | None = None, number: int = 0, how: int = signal.SIGKILL) -> None:
    """Sends a signal to one of the workers."""
    workers = sorted(train_workers(of), key=lambda process: process.pid)
    os.kill(workers[number].pid, how)


@contextmanager
def program(job: str, config: PretrainConfig, home: Path) -> Iterator[subprocess.Popen]:
    """`python -m ray_jobs.<job>` with these settings, which ends with the block at the latest."""
    file = home / f"{config.name}.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    }
    started = subprocess.Popen(
        [sys.executable, "-m", f"ray_jobs.{job}", str(file)],
        cwd=REPOSITORY,
        env=inherited | {"XKD_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving_mlflow(folder: Path, port: int) -> Iterator[str]:
    """An MLflow server over what lies in the folder, up while the block runs."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("a") as log:
        server = subprocess.Popen(
            command, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until(lambda: _answers(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False

"""What does Ray Train cost, what does a second worker bring, and how long do they wait for data?

    python tests/benchmarks/train_overhead.py [steps=40] [repeats=3] [short_side=48]

In turns, on one thread a process: a bare loop over the feed, the views and `train_step`; two such
loops at the same time, which share nothing and so are what two CPUs of this machine can give; the
same training by Ray Train with one worker; and with two workers and twice the batch, so that each
worker has the same. Clips a second over all steps but the first; saving and logging are in Ray
Train's figures and not in the loops'. The network is that of the smoke run.

Beside clips a second stand CPU milliseconds a step, between two progress reports: of the bare
loop's process, of the workers, and of all other processes of Ray and of this driver. They mean
something where the machine does other work; what the others take, two workers on two CPUs lack.

The wait for data is what training says of itself in MLflow: the shares of its laps, each weighed
with the lap's seconds, over all steps but the first. It is that of the first worker; a second one
that waits shows in the first one's steps, which then take longer. Clips are smaller than those of
ingest, whose short side is 128; the wait and the views' part of a step depend on it.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import psutil
import ray
import torch
import yaml
from program import environment, median_and_range, options

from pipelines.config.pretrain import PretrainConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.tracking.runs import RunRef
from pipelines.training.feed import make_feed
from pipelines.training.pretrain import pretrain
from ray_jobs.cli.cluster import without_dashboard
from ray_jobs.cli.environment import ENVIRONMENT
from tests.helpers.clip_datasets import FRAME_RATE, SAMPLE_RATE, write_dataset
from xkd_core.losses import initial_centers
from xkd_core.optim import build_optimizer
from xkd_core.train_step import TrainState, train_step
from xkd_core.views.log_mel import LogMel
from xkd_core.views.parameters import draw_view_parameters
from xkd_core.views.views import make_views
from xkd_core.xkd import build_xkd

REPOSITORY = Path(__file__).resolve().parents[2]
BATCH_SIZE = 16
NUM_CLIPS = 64
DEFAULTS = {"steps": "40", "repeats": "3", "short_side": "48"}
WAYS = ("bare", "bare_2", "ray_1", "ray_2")
Turn = dict[str, float]
"""Clips a second by way, the share of waiting by `WAY wait`, and CPU times by `WAY worker ms` and
`WAY others ms`."""


def main() -> None:
    """Prints a table, and one JSON line last."""
    given = options(DEFAULTS)
    num_steps, repeats = int(given["steps"]), int(given["repeats"])
    if num_steps < 3 or repeats < 1:  # the first step is not timed
        raise SystemExit(f"steps ({num_steps}) must be 3 or more, repeats ({repeats}) 1 or more")
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        side = int(given["short_side"])
        shape = (20, side, side * 4 // 3, 3)
        noise = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
        write_dataset(
            home / "clips", NUM_CLIPS, num_frames=20, frames=lambda clip, *_: np.roll(noise, clip)
        )
        turns = measure(home, num_steps, repeats)
    report(turns)
    line = {"benchmark": "train_overhead", **environment("ray", "torch", "mlflow")}
    print(json.dumps(line | {"settings": given, "turns": turns}))


def measure(home: Path, num_steps: int, repeats: int) -> list[Turn]:
    """Takes turns."""
    os.environ.update(ENVIRONMENT)
    turns: list[Turn] = []
    ray.init(address="local", num_cpus=2, log_to_driver=False, **without_dashboard())
    for repeat in range(repeats):
        turn: Turn = {}
        for way in WAYS:
            num_workers = 2 if way == "ray_2" else 1
            config = settings(home, f"{way}.{repeat}", num_workers, num_steps)
            if way.startswith("bare"):
                num_loops = 2 if way == "bare_2" else 1
                turn[way], turn[f"{way} worker ms"] = bare_loops(config, home, num_steps, num_loops)
            else:
                use = CpuUse()
                result = pretrain(config, on_progress=use.see)
                turn[way], turn[f"{way} wait"] = result.clips_per_second, data_wait(result.run)
                turn[f"{way} worker ms"], turn[f"{way} others ms"] = use.milliseconds_a_step()
        turns.append(turn)
        print("  ".join(f"{name} {value:.4g}" for name, value in turn.items()), flush=True)
    ray.shutdown()
    return turns


class CpuUse:
    """CPU seconds of the workers and of all other processes, at each progress report."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, float, float]] = []

    def see(self, step: int, *_: object) -> None:
        """Takes the times after a number of steps; the first of them starts the count."""
        workers = others = 0.0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                seconds = sum(process.cpu_times()[:2])
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    workers += seconds
                else:
                    others += seconds
        # After the last step the workers may have ended, with their times.
        if step and (not self._seen or (step > self._seen[-1][0] and workers > self._seen[-1][1])):
            self._seen.append((step, workers, others))

    def milliseconds_a_step(self) -> tuple[float, float]:
        """Of all workers together, and of the other processes."""
        (first, *before), (last, *after) = self._seen[0], self._seen[-1]
        workers, others = (
            (end - begin) / (last - first) * 1e3 for begin, end in zip(before, after, strict=True)
        )
        return workers, others


def data_wait(run: RunRef) -> float:
    """The share of the time that a training waited for data, after its first step."""
    client = run.client()
    shares, seconds = (
        {metric.step: metric.value for metric in client.get_metric_history(run.run_id, name)}
        for name in ("time/data_wait_share", "time/lap_seconds")
    )
    assert seconds
    assert shares.keys() == seconds.keys()
    return sum(shares[step] * seconds[step] for step in shares) / sum(seconds.values())


def settings(home: Path, name: str, num_workers: int, num_steps: int) -> PretrainConfig:
    """The smoke run's training on the made clips."""
    smoke = yaml.safe_load((REPOSITORY / "conf" / "recipe" / "smoke.yaml").read_text())
    model = smoke["model"]
    model["video"] |= {"num_frames": 16, "frame_rate": FRAME_RATE}
    seconds = 16 / FRAME_RATE
    model["audio"] |= {
        "num_samples": round(seconds * SAMPLE_RATE),
        "sample_rate": SAMPLE_RATE,
        "local_num_samples": round(seconds * SAMPLE_RATE / 4),
        "n_fft": 256,
        "hop_length": 25,
        "patch_frames": 3,
    }
    batch_size = BATCH_SIZE * num_workers
    epochs = num_steps * batch_size / NUM_CLIPS
    smoke["optimizer"]["warmup_epochs"] = min(smoke["optimizer"]["warmup_epochs"], epochs)
    changes = {
        "name": name,
        "dataset": str(home / "clips"),
        "output": str(home / "runs"),
        "tracking": {"uri": f"sqlite:///{home}/mlflow.db"},
        "epochs": epochs,
        "batch_size": batch_size,
        "num_workers": num_workers,
        "cpus_per_worker": 1,
    }
    return PretrainConfig.model_validate(smoke | changes)


def bare_loops(
    config: PretrainConfig, home: Path, num_steps: int, num_loops: int
) -> tuple[float, float]:
    """Bare loops at the same time, each on one thread as a worker with one CPU is.

    Returns:
        Clips a second and CPU ms a step, of all loops together.
    """
    file = home / "bare.json"
    file.write_text(config.model_dump_json())
    program = "import sys, train_overhead; train_overhead.bare(sys.argv[1], int(sys.argv[2]))"
    loops = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(file), str(num_steps)],
            cwd=Path(__file__).parent,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(num_loops)
    ]
    said = [loop.communicate()[0].split()[-2:] for loop in loops]
    assert all(loop.returncode == 0 for loop in loops)
    rates, milliseconds = zip(*said, strict=True)
    return sum(map(float, rates)), sum(map(float, milliseconds))


def bare(file: str, num_steps: int) -> None:
    """Trains without Ray and prints clips a second."""
    torch.set_num_threads(1)
    config = PretrainConfig.model_validate_json(Path(file).read_text())
    feed = make_feed(config, ClipDataset.open(config.dataset), rank=0, world_size=1)
    torch.manual_seed(config.seed)
    model = build_xkd(config.model)
    optimizer = build_optimizer(model, config.optimizer)
    state = TrainState(model, model, optimizer, initial_centers(config.model.head.output_width))
    log_mel = LogMel(config.model.audio)
    batches = feed.batches(0)
    for step in range(num_steps):
        batch = next(batches)
        parameters = draw_view_parameters(batch.clip_ids, batch.epochs, config.seed, config)
        views = make_views(batch.clips, parameters, config, log_mel)
        train_step(
            state,
            views,
            config,
            total_steps=num_steps,
            steps_per_epoch=feed.steps_per_epoch,
        )
        if step == 0:
            begun, cpu = time.monotonic(), time.process_time()
    print((num_steps - 1) * config.batch_size / (time.monotonic() - begun))
    print((time.process_time() - cpu) / (num_steps - 1) * 1e3)
    feed.close()


def report(turns: list[Turn]) -> None:
    """Ratios within each turn."""
    for way in WAYS:
        print(f"{way:6} {median_and_range([turn[way] for turn in turns])} clips/s")
    for way in WAYS:
        own = median_and_range([turn[f"{way} worker ms"] for turn in turns], 1)
        line = f"{way:6} {own} CPU ms a step of the workers"
        if way.startswith("ray"):
            others = median_and_range([turn[f"{way} others ms"] for turn in turns], 1)
            line += f", {others} of other processes"
        print(line)
    cost = median_and_range([turn["bare"] / turn["ray_1"] for turn in turns], 3)
    print(f"Ray Train with one worker takes {cost} times the bare loop")
    gain = median_and_range([turn["ray_2"] / turn["ray_1"] for turn in turns], 3)
    print(f"two workers give {gain} times one worker's throughput")
    gain = median_and_range([turn["bare_2"] / turn["bare"] for turn in turns], 3)
    print(f"two bare loops give {gain} times one's")
    cost = median_and_range([turn["bare_2"] / turn["ray_2"] for turn in turns], 3)
    print(f"Ray Train with two workers takes {cost} times two bare loops")
    for way in WAYS[2:]:
        waits = median_and_range([turn[f"{way} wait"] for turn in turns], 4)
        print(f"{way} waits for data for {waits} of the time")


if __name__ == "__main__":
    main()

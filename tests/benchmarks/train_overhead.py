"""What does Ray Train cost, and what does a second worker bring?

    python tests/benchmarks/train_overhead.py [STEPS] [REPEATS]

In turns, on one thread a process: a bare loop over the feed, the views and `train_step`; the same
training by Ray Train with one worker; and with two workers and twice the batch, so that each
worker has the same. Clips a second over all steps but the first; saving and logging are in Ray
Train's figures and not in the loop's. The network is that of the smoke run.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import ray
import torch
import yaml
from datasets import FRAME_RATE, SAMPLE_RATE, write_dataset

from pipelines.clip_dataset import ClipDataset
from pipelines.config import PretrainConfig
from pipelines.pretrain import pretrain
from pipelines.train_loop import make_feed
from ray_jobs.cluster import SURROUNDINGS
from xkd_core.audio import LogMel
from xkd_core.losses import initial_centers
from xkd_core.optim import build_optimizer
from xkd_core.train_step import TrainState, train_step
from xkd_core.views import draw_view_parameters, make_views
from xkd_core.xkd import build_xkd

REPOSITORY = Path(__file__).resolve().parents[2]
BATCH_SIZE = 16
NUM_CLIPS = 64
WAYS = ("bare", "ray_1", "ray_2")


def main() -> None:
    """Prints a table, and one JSON line last."""
    num_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        noise = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), dtype=np.uint8)
        write_dataset(
            home / "clips", NUM_CLIPS, num_frames=20, frames=lambda clip, *_: np.roll(noise, clip)
        )
        results = measure(home, num_steps, repeats)
    report(results, num_steps)


def measure(home: Path, num_steps: int, repeats: int) -> dict[str, list[float]]:
    """Clips a second of each way, in turns."""
    os.environ.update(SURROUNDINGS)
    results: dict[str, list[float]] = {way: [] for way in WAYS}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    for repeat in range(repeats):
        for way in WAYS:
            num_workers = 2 if way == "ray_2" else 1
            config = settings(home, f"{way}.{repeat}", num_workers, num_steps)
            results[way].append(
                in_a_process(config, home, num_steps)
                if way == "bare"
                else pretrain(config, on_progress=lambda *_: None).clips_per_second
            )
            print(way, f"{results[way][-1]:.2f} clips/s", flush=True)
    ray.shutdown()
    return results


def settings(home: Path, name: str, num_workers: int, num_steps: int) -> PretrainConfig:
    """The smoke run's training on the made clips."""
    smoke = yaml.safe_load((REPOSITORY / "conf" / "pretrain" / "smoke.yaml").read_text())
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
    changes = {
        "name": name,
        "dataset": str(home / "clips"),
        "output": str(home / "runs"),
        "tracking": {"uri": f"sqlite:///{home}/mlflow.db"},
        "epochs": num_steps * batch_size / NUM_CLIPS,
        "batch_size": batch_size,
        "num_workers": num_workers,
        "cpus_per_worker": 1,
    }
    return PretrainConfig.model_validate(smoke | changes)


def in_a_process(config: PretrainConfig, home: Path, num_steps: int) -> float:
    """The bare loop, on one thread as a worker with one CPU is."""
    file = home / "bare.json"
    file.write_text(config.model_dump_json())
    program = "import sys, train_overhead; train_overhead.bare(sys.argv[1], int(sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(file), str(num_steps)],
        cwd=Path(__file__).parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.strip().splitlines()[-1])


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
            begun = time.monotonic()
    print((num_steps - 1) * config.batch_size / (time.monotonic() - begun))
    feed.close()


def report(results: dict[str, list[float]], num_steps: int) -> None:
    """Ratios within each turn."""
    turns = list(zip(*(results[way] for way in WAYS), strict=True))
    cost = [bare / one for bare, one, _ in turns]
    gain = [two / one for _, one, two in turns]
    for way in WAYS:
        print(f"{way:6} {statistics.median(results[way]):7.2f} clips/s")
    print(f"Ray Train with one worker takes {_spread(cost)} times the bare loop")
    print(f"two workers give {_spread(gain)} times one worker's throughput")
    print(
        json.dumps(
            {
                "benchmark": "train_overhead",
                "ray": version("ray"),
                "torch": version("torch"),
                "cpu": platform.machine(),
                "cores": os.cpu_count(),
                "load": os.getloadavg(),
                "steps": num_steps,
                "results": results,
            }
        )
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()

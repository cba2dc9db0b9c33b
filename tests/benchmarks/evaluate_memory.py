"""How much memory does an evaluation of many clips take, process by process?

    python tests/benchmarks/evaluate_memory.py [clips=100000] [width=768] [average=features]
    python tests/benchmarks/evaluate_memory.py worker_shards=5 width=192

Writes a clip dataset of tiny clips and a cache with made features of that width: trained and
untrained, video and audio, as a ViT-B gives them. Then `ray_jobs.evaluate` runs on them as a user's
would, without decoding a clip. Memory of a process is what it has of its own (RssAnon); pages of
Ray's object store (RssShmem) are shared by all, and count once, by the process that maps the most.

With `worker_shards` it measures instead what a worker that embeds takes: this process is one, with
encoders of one block of that width, and embeds so many shards of 1,000 clips into an empty cache.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import psutil
import torch
from program import environment, options

from pipelines.config.evaluate import EvaluateSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.evaluation.cache import FeatureCache
from pipelines.evaluation.choice import choose, retrieval_clips
from pipelines.evaluation.embedder import Embedded
from pipelines.evaluation.networks import checkpoint_source, load_network
from pipelines.evaluation.shard_features import DONE_FOLDER, FeatureWorker, shard_parts
from pipelines.models.checkpoints import (
    AUDIO_CENTER,
    VIDEO_CENTER,
    TrainingInfo,
    checkpoint_name,
    save_checkpoint,
)
from tests.helpers.clip_datasets import write_dataset
from tests.helpers.training import MODEL, tiny_config
from xkd_core.xkd import build_xkd, model_tensors

DEFAULTS = {"clips": "100000", "width": "768", "average": "features", "worker_shards": "0"}
NUM_CLASSES = 10
CLIPS_PER_SHARD = 1000
SHOWN = {
    "extract": "task that gathers",
    "_fit": "task of a classifier",
    "Map": "worker that embeds",
}
"""What processes do, by the beginning of the names that Ray gives them."""


def main() -> None:
    """Prints the peaks, and one JSON line last."""
    given = options(DEFAULTS)
    num_clips, width = int(given["clips"]), int(given["width"])
    settings = {
        "measures": ["knn", "linear", "retrieval"],
        "linear_l2": [1.0],
        "fusion": ["both"],
        "average": given["average"],
        "retrieval_sizes": [1000],
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if num_shards := int(given["worker_shards"]):
            watch_worker(folder, num_clips, width, num_shards, settings)
            return
        checkpoint = write_checkpoint(folder, None)
        dataset = ClipDataset.open(str(write_clips(folder / "clips", num_clips)))
        stored = write_features(folder / "cache", checkpoint, dataset, width, settings)
        peaks, seconds = watched(folder, checkpoint, settings)
    for name, peak in sorted(peaks.items()):
        print(f"{name:24} {peak / 1e9:6.2f} GB")
    print(f"features {stored / 1e9:.2f} GB, evaluation {seconds:.0f} s")
    line = {"benchmark": "evaluate_memory", **environment("ray", "scikit-learn")}
    print(json.dumps(line | {"settings": given, "peaks": peaks, "features": stored}))


def write_checkpoint(folder: Path, width: int | None) -> Path:
    """A tiny network, or one block of a width.

    A cache of made features names the content of the tiny one, which computes none of its own.
    """
    block = {"encoder": {"width": width, "depth": 1, "num_heads": 4}} if width else {}
    trained = tiny_config(folder, folder, model=MODEL | block)
    torch.manual_seed(0)
    model = build_xkd(trained.model)
    width = trained.model.head.output_width
    tensors = dict(model_tensors(model)) | {
        VIDEO_CENTER: torch.zeros(width),
        AUDIO_CENTER: torch.zeros(width),
    }
    info = TrainingInfo(1, 1, 1.0, trained.model_dump(mode="json"), "clips", "run", "code")
    checkpoint = folder / "run" / checkpoint_name(1)
    save_checkpoint(checkpoint, tensors, {}, info)
    return checkpoint


def watch_worker(
    folder: Path, num_clips: int, width: int, num_shards: int, values: dict[str, Any]
) -> None:
    """Prints what this process takes before, as a worker, and after each shard."""
    checkpoint = write_checkpoint(folder, width)
    clips = write_clips(folder / "clips", num_clips)
    dataset, settings = ClipDataset.open(str(clips)), EvaluateSettings.model_validate(values)
    parts = list(shard_parts(dataset, choose(dataset, settings, None)))[:num_shards]
    for name in ("cache", f"scratch/{DONE_FOLDER}"):
        (folder / name).mkdir(parents=True)
    source = checkpoint_source(checkpoint, str(checkpoint), "teacher")
    own = {"before": memory_of(os.getpid())[0]}
    worker = FeatureWorker(
        {"trained": (source,), "untrained": (source,)},
        str(clips),
        settings.model_dump(mode="json"),
        None,
        str(folder / "cache"),
        str(folder / "scratch"),
    )
    own["as a worker"] = memory_of(os.getpid())[0]
    for number, part in enumerate(parts, 1):
        (row,) = worker(asdict(part))
        assert not row["failed"], row["failed"]
        own[f"after {number} shards"] = memory_of(os.getpid())[0]
    for name, size in own.items():
        print(f"{name:24} {size / 1e9:6.3f} GB")
    line = {"benchmark": "evaluate_memory", **environment("torch"), "clips": num_clips}
    print(json.dumps(line | {"width": width, "own": own}))


def write_clips(folder: Path, num_clips: int) -> Path:
    """Clips of one frame, each of a source of its own; a quarter is held out."""
    return write_dataset(
        folder,
        num_clips,
        num_frames=1,
        rows_per_group=250,
        clips_per_shard=CLIPS_PER_SHARD,
        size=lambda _: (2, 2),
        split=lambda clip: "test" if clip % 4 == 0 else "train",
        label=lambda clip: f"class{clip % NUM_CLASSES}",
        frames=lambda _, num_frames, size: np.zeros((num_frames, *size, 3), np.uint8),
    )


def write_features(
    cache: Path, checkpoint: Path, dataset: ClipDataset, width: int, values: dict[str, Any]
) -> int:
    """Writes made features that know a little of the class; returns the bytes of one view each."""
    settings = EvaluateSettings.model_validate(values)
    chosen = choose(dataset, settings, None)
    in_retrieval = retrieval_clips(dataset, chosen, settings.retrieval_max_clips)
    source = checkpoint_source(checkpoint, str(checkpoint), "teacher")
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(NUM_CLASSES, width)).astype(np.float32)
    views = settings.num_windows if settings.average == "scores" else 1
    for trained in (True, False):
        for modality, evaluated in load_network([source], trained=trained).items():
            where = FeatureCache.open(cache, modality, evaluated, dataset.dataset_id, settings)
            for part in shard_parts(dataset, chosen):
                here = slice(part.begin, part.end)
                wanted = np.flatnonzero(in_retrieval[here])
                truth = chosen.targets[here].argmax(axis=1)
                owners = np.repeat(np.arange(len(truth)), settings.num_windows)
                noise = rng.normal(0, 8, (len(owners), width)).astype(np.float32)
                logits = np.zeros((len(truth), evaluated.model.head.output_width), np.float32)
                found = Embedded(owners, centers[truth][owners] + noise, None, logits, None)
                where.write(part.name, chosen.clip_ids[here], wanted, found)
    return 4 * len(chosen.rows) * width * 4 * views


def watched(
    folder: Path, checkpoint: Path, settings: dict[str, Any]
) -> tuple[dict[str, float], float]:
    """Evaluates, and returns the peaks of its processes by what they do."""
    arguments = {
        "checkpoint": checkpoint,
        "dataset": folder / "clips",
        "output": folder / "out",
        "cache": folder / "cache",
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
        **{name: json.dumps(value) for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "ray_jobs.evaluate", "smoke"]
    command += [f"{name}={value}" for name, value in arguments.items()]
    started = time.monotonic()
    peaks: dict[str, float] = defaultdict(float)
    log = folder / "log"
    with log.open("w") as file:
        job = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ})
        while job.poll() is None:
            sample(psutil.Process(job.pid), peaks)
            time.sleep(0.2)
    print(log.read_text()[-3000:])
    if job.returncode:
        raise SystemExit(f"evaluation failed ({job.returncode})")
    return dict(peaks), time.monotonic() - started


def sample(driver: psutil.Process, peaks: dict[str, float]) -> None:
    """Raises the peaks to what the processes have now."""
    total = 0.0
    for process in (driver, *driver.children(recursive=True)):
        try:
            own, shared = memory_of(process.pid)
            title = " ".join(process.cmdline())
        except (OSError, psutil.Error):
            continue
        name = next((what for one, what in SHOWN.items() if f"ray::{one}" in title), "")
        name = "driver" if process.pid == driver.pid else name
        if name:
            peaks[name] = max(peaks[name], own)
        peaks["object store"] = max(peaks["object store"], shared)
        total += own
    peaks["all, without the store"] = max(peaks["all, without the store"], total)


def memory_of(pid: int) -> tuple[float, float]:
    """Bytes of a process of its own and of shared memory."""
    values = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("RssAnon", "RssShmem"):
            values[name] = 1024.0 * int(rest.split()[0])
    return values.get("RssAnon", 0.0), values.get("RssShmem", 0.0)


if __name__ == "__main__":
    main()

"""How long does a checkpoint hold up training at ViT-B size?

    python tests/benchmarks/checkpoint_stall.py [FOLDER]

All networks of the paper's XKD with AdamW's moments lie in memory (3.3 GB, so it takes about 8 GB
and a disk with as much room). A step is one second long and waits, as it does for a device: nine
tenths for forward and backward, the rest for the update, during which nothing is copied. What a
save costs is what the step's thread is held up in `save` and `before_update`.
"""

import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

from pipelines.models.checkpoints import TrainingInfo, load_tensors
from pipelines.training.checkpoint_writer import CheckpointWriter
from xkd_core.config import MethodConfig
from xkd_core.optim import build_optimizer
from xkd_core.xkd import build_xkd, model_tensors

STEP_SECONDS = 1.0
DEVICE_SHARE = 0.9
REPEATS = 5
STEPS_BETWEEN = 8
"""Steps from one save to the next, so that its writing is mostly over."""


def main() -> None:
    """Prints a table, and one JSON line last."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        measure(Path(folder))


def measure(folder: Path) -> None:
    """Takes steps with and without a save in turns."""
    tensors, optimizer = build()
    moments = [value for state in optimizer.state.values() for value in state.values()]
    changing = [*tensors.values(), *moments]
    writer = CheckpointWriter(folder)
    plain, saving, stalls, written = [], [], [], []
    for number in range(REPEATS + 1):
        stall = Stall(writer)
        seconds = step(writer, stall, lambda: None)
        plain.append(seconds)
        begun = time.monotonic()
        info = TrainingInfo(number, 99, 1.0, {}, "clips", "run", "code")

        def save(info: TrainingInfo = info) -> None:
            writer.save(tensors, optimizer.state_dict(), info)

        stall = Stall(writer)
        saving.append(step(writer, stall, save))
        stalls.append(stall.seconds)
        for _ in range(STEPS_BETWEEN):
            step(writer, Stall(writer), lambda: None)
        writer.wait()
        written.append(time.monotonic() - begun)
        for checkpoint in writer.written[:-1]:
            shutil.rmtree(checkpoint, ignore_errors=True)
    assert not writer.failure, writer.failure
    assert load_tensors(writer.written[-1]).keys() == tensors.keys()
    writer.close()
    report(changing, plain, saving, stalls, written)


def build() -> tuple[dict[str, torch.Tensor], torch.optim.Optimizer]:
    """The networks and an optimizer with its moments."""
    config = MethodConfig()
    model = build_xkd(config.model)
    optimizer = build_optimizer(model, config.optimizer)
    for parameter in model.parameters():
        if parameter.requires_grad:
            optimizer.state[parameter] = {
                "step": torch.tensor(1.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return model_tensors(model), optimizer


class Stall:
    """Sums up what the step's thread waits for."""

    def __init__(self, writer: CheckpointWriter) -> None:
        self.writer = writer
        self.seconds = 0.0

    def timed(self, work) -> None:
        """Counts the time of a call."""
        begun = time.monotonic()
        work()
        self.seconds += time.monotonic() - begun


def step(writer: CheckpointWriter, stall: Stall, save) -> float:
    """One step that begins with the save of the one before; gives its length."""
    begun = time.monotonic()
    stall.timed(save)
    time.sleep(STEP_SECONDS * DEVICE_SHARE)
    stall.timed(writer.before_update)
    time.sleep(STEP_SECONDS * (1 - DEVICE_SHARE))
    return time.monotonic() - begun


def report(changing, plain, saving, stalls, written) -> None:
    """The first save is apart: it touches the memory that the others use again."""
    gigabytes = sum(tensor.nbytes for tensor in changing) / 1e9
    stall = statistics.median(stalls[1:])
    longer = statistics.median(saving[1:]) - statistics.median(plain[1:])
    print(f"checkpoint          {gigabytes:6.2f} GB")
    print(f"first save stalls   {1000 * stalls[0]:6.1f} ms")
    print(
        f"a save stalls       {1000 * stall:6.1f} ms "
        f"({1000 * min(stalls[1:]):.1f} to {1000 * max(stalls[1:]):.1f})"
    )
    print(f"its step is longer  {1000 * longer:6.1f} ms")
    print(f"share of a step     {100 * stall / STEP_SECONDS:6.2f} %")
    print(f"whole on disk after {statistics.median(written[1:]):6.1f} s at most")
    results = {"gigabytes": gigabytes, "stalls": stalls, "plain": plain, "saving": saving}
    print(
        json.dumps(
            {
                "benchmark": "checkpoint_stall",
                "torch": version("torch"),
                "cpu": platform.machine(),
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    main()

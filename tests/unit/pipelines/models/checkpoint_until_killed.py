"""Saves one checkpoint after another into a folder until it is killed; a program of a test."""

import sys
from pathlib import Path

import torch

from pipelines.models.checkpoints import TrainingInfo, checkpoint_name, save_checkpoint

NUM_VALUES = 20_000_000


def save(folder: Path, step: int) -> None:
    info = TrainingInfo(step, 99, 1.0, {}, "clips", "run", "code")
    tensors = {"values": torch.full((NUM_VALUES,), float(step))}
    save_checkpoint(folder / checkpoint_name(step), tensors, {"state": {}}, info)


if __name__ == "__main__":
    for number in range(1, 99):
        save(Path(sys.argv[1]), number)

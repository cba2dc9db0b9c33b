"""The writer of checkpoints copies before weights may change and tells of failures."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.models.checkpoints import TrainingInfo, load_optimizer_state, load_tensors, read_info
from pipelines.training.checkpoint_writer import CheckpointWriter

INFO = TrainingInfo(1, 9, 1.5, {"seed": 0}, "clips", "run", "code")


@pytest.fixture
def writer(tmp_path: Path):
    writer = CheckpointWriter(tmp_path)
    yield writer
    writer.close()


def test_what_changes_after_the_copy_is_not_in_the_checkpoint(writer):
    weights, moments = torch.zeros(5_000_000), torch.zeros(5_000_000)
    writer.save({"weights": weights}, {"state": {0: {"exp_avg": moments}}}, INFO)
    writer.before_update()
    weights += 1.0
    moments += 1.0
    writer.wait()
    assert not load_tensors(writer.written[0])["weights"].any()
    assert not load_optimizer_state(writer.written[0])["state"][0]["exp_avg"].any()


def test_each_checkpoint_is_written_in_its_turn(writer):
    for step in (1, 2, 3):
        writer.save({"step": torch.tensor([step])}, {}, replace(INFO, next_step=step))
    writer.wait()
    assert [read_info(checkpoint).next_step for checkpoint in writer.written] == [1, 2, 3]
    assert [load_tensors(checkpoint)["step"].item() for checkpoint in writer.written] == [1, 2, 3]
    assert writer.failure == ""


def test_tensors_may_change_shape_and_number_between_checkpoints(writer):
    trees = [
        {"a": torch.ones(3), "b": torch.ones(2, 2)},
        {"a": torch.ones(5)},
        {"a": torch.ones(5)},
    ]
    for step, tensors in enumerate(trees):
        writer.save(tensors, {}, replace(INFO, next_step=step))
        writer.wait()
        assert load_tensors(writer.written[-1]).keys() == tensors.keys()
        assert load_tensors(writer.written[-1])["a"].tolist() == tensors["a"].tolist()


def test_a_failure_is_kept_and_the_weights_may_change(writer, tmp_path):
    tmp_path.rmdir()
    tmp_path.write_text("a file where the folder was")
    writer.save({"weights": torch.zeros(3)}, {}, INFO)
    writer.before_update()
    writer.wait()
    assert "directory" in writer.failure
    assert writer.written == []
    os.unlink(tmp_path)


def test_what_does_not_fit_is_not_begun(writer, tmp_path):
    huge = torch.zeros(1).expand(10**15)  # 4 PB that take no memory
    writer.save({"weights": huge}, {}, INFO)
    writer.wait()
    assert "the disk is full: 4000.0 TB needed" in writer.failure
    assert list(tmp_path.iterdir()) == []

"""A checkpoint is whole or it is not there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines.errors import UserError
from pipelines.models.checkpoints import (
    MODEL_FILE,
    TrainingInfo,
    checkpoint_name,
    find_checkpoint,
    load_optimizer_state,
    load_tensors,
    newest_checkpoint,
    read_info,
    read_unsent,
    remove_other_checkpoints,
    save_checkpoint,
)
from tests.helpers.training import wait_until


def save(folder: Path, step: int, unsent=()) -> Path:
    info = TrainingInfo(step, 9, 1.5, {"seed": 0}, "clips", "run", "code")
    checkpoint = folder / checkpoint_name(step)
    tensors = {"a": torch.full((1000,), float(step)), "b": torch.arange(6).reshape(2, 3).T}
    save_checkpoint(checkpoint, tensors, {"state": {0: {"step": torch.tensor(3.0)}}}, info, unsent)
    return checkpoint


def test_what_is_saved_comes_back(tmp_path):
    checkpoint = save(tmp_path, 3, unsent=[{"key": "loss/total", "value": 0.5}])
    assert torch.equal(load_tensors(checkpoint)["b"], torch.arange(6).reshape(2, 3).T)
    assert load_optimizer_state(checkpoint)["state"][0]["step"] == 3.0
    assert read_info(checkpoint).next_step == 3
    assert read_unsent(checkpoint) == [{"key": "loss/total", "value": 0.5}]
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    old, new = save(tmp_path, 3), save(tmp_path, 12)
    (tmp_path / "notes").mkdir()
    assert find_checkpoint(str(tmp_path)) == new
    with (new / MODEL_FILE).open("r+b") as file:
        file.truncate(100)
    assert find_checkpoint(str(tmp_path)) == old
    assert newest_checkpoint(tmp_path / "notes") is None
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        find_checkpoint(str(tmp_path / "notes"))


def test_saving_again_replaces(tmp_path):
    save(tmp_path, 3)
    checkpoint = save(tmp_path, 3, unsent=[{"key": "a"}])
    assert read_unsent(checkpoint)
    assert newest_checkpoint(tmp_path) == checkpoint


def test_killed_while_writing_leaves_the_one_before_whole(tmp_path):
    program = Path(__file__).with_name("checkpoint_until_killed.py")
    writer = subprocess.Popen([sys.executable, program, tmp_path])
    try:
        first = tmp_path / checkpoint_name(1)
        wait_until(first.exists)
        # The next one is being written: some of its bytes are there.
        wait_until(lambda: any(path.stat().st_size for path in tmp_path.glob(f".*/{MODEL_FILE}")))
    finally:
        writer.kill()
        writer.wait()
    partial = [path.name for path in tmp_path.glob(".step_*.tmp")]
    found = find_checkpoint(str(tmp_path))
    step = read_info(found).next_step
    assert load_tensors(found)["values"].unique().tolist() == [float(step)]
    assert len(partial) == 1
    assert partial[0].startswith(f".{checkpoint_name(step + 1)}")
    remove_other_checkpoints(tmp_path, {found})
    assert list(tmp_path.iterdir()) == [found]


def test_a_refused_write_is_an_os_error_and_leaves_nothing(tmp_path):
    good = save(tmp_path, 3)
    program = (
        "import resource, signal, sys, pathlib\n"
        "from tests.unit.pipelines.models import checkpoint_until_killed as program\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try:\n"
        "    program.save(pathlib.Path(sys.argv[1]), 4)\n"
        "except OSError as error:\n"
        "    print('refused:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    assert done.stdout.startswith("refused:")
    assert list(tmp_path.iterdir()) == [good]

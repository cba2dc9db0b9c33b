"""How a program ends: its exit code and the one line that it says."""

import os
import signal
from pathlib import Path

import pytest

from pipelines.config import JobConfig
from pipelines.errors import JobFailed, Stopped, UserError
from ray_jobs.cli import Job, Plan, run_job


def run(tmp_path: Path, work) -> int:
    file = tmp_path / "job.yaml"
    file.write_text("tracking: {experiment: test}")
    job = Job("test", "A test.", JobConfig, lambda _: Plan((), ()), lambda _: work())
    before = signal.getsignal(signal.SIGTERM)
    try:
        return run_job(job, [str(file)])
    finally:
        signal.signal(signal.SIGTERM, before)


def fail_with(error: BaseException):
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("epochs (0) must be more"), 2, "test: epochs (0) must be more"),
        (JobFailed("the disk is full"), 1, "test: the disk is full"),
        (Stopped("max_seconds are over"), 75, "test: max_seconds are over"),
        (KeyboardInterrupt(), 130, "test: interrupted. The same command goes on from there."),
        (
            KeyboardInterrupt("3 of 9 steps are done and saved"),
            130,
            "test: interrupted. 3 of 9 steps are done and saved. The same command goes on",
        ),
    ],
)
def test_exit_code_and_line(error, code, line, tmp_path, capsys):
    assert run(tmp_path, fail_with(error)) == code
    assert capsys.readouterr().err.strip().startswith(line)


def test_a_terminated_job_can_be_taken_up_again(tmp_path, capsys):
    assert run(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM)) == 75
    assert capsys.readouterr().err.strip().startswith("test: terminated. The same command")


def test_a_job_that_ends_well(tmp_path):
    assert run(tmp_path, lambda: None) == 0

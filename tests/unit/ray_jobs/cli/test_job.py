"""How a program ends: its exit code and the one line that it says."""

import importlib
import inspect
import logging
import os
import signal
import sys
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from ray.exceptions import ActorDiedError, RayTaskError

from pipelines.config.base import JobConfig
from pipelines.errors import JobFailed, Stopped, UserError
from ray_jobs.cli.job import Job, JobPlan, _dry_run, _Redacting, run_job
from ray_jobs.cli.jobs import JOBS, JobSummary

TEST = JobSummary("test", "A test.", "pipelines.config.base:JobConfig", ())


def run(tmp_path: Path, work) -> int:
    file = tmp_path / "job.yaml"
    file.write_text("tracking: {experiment: test}")
    job = Job(TEST, JobConfig, lambda _: JobPlan((), ()), lambda _: work())
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
        (KeyboardInterrupt(), 130, "test: interrupted. The same command continues from there."),
        (
            KeyboardInterrupt("3 of 9 steps done and saved"),
            130,
            "test: interrupted. 3 of 9 steps done and saved. The same command continues",
        ),
    ],
)
def test_exit_code_and_line(error, code, line, tmp_path, capsys):
    assert run(tmp_path, fail_with(error)) == code
    assert capsys.readouterr().err.strip().startswith(line)


def failed_task(cause: Exception) -> RayTaskError:
    return RayTaskError("work", "Traceback ...", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MlflowException("no answer\nafter 3 tries"), "no answer after 3 tries"),
        (ActorDiedError(), "The actor died unexpectedly"),
        (OSError(28, "No space left on device", "/out/a"), "No space left on device (/out/a)"),
        (
            MlflowException("API request to http://me:s@cr@h:1/api failed"),
            "API request to http://***@h:1/",
        ),
        (failed_task(OSError(5, "Input/output error", "/in/b")), "Input/output error (/in/b)"),
        (ConnectionError("no Ray at 10.0.0.1:6379"), "no Ray at 10.0.0.1:6379"),
    ],
)
def test_what_fails_outside_of_the_code_is_one_line(error, line, tmp_path, capsys, caplog):
    with caplog.at_level("INFO"):
        assert run(tmp_path, fail_with(error)) == 1
    (reported,) = capsys.readouterr().err.strip().splitlines()
    assert reported.startswith(f"test: {line}")
    assert reported.endswith(". The same command continues from there.")
    assert "Traceback" in caplog.text


def test_a_traceback_on_the_console_shows_no_password():
    try:
        raise MlflowException("API request to http://me:secret@host:1/api failed")
    except MlflowException:
        record = logging.LogRecord("cli", 20, "cli.py", 1, "it failed", (), sys.exc_info())
    shown = _Redacting("%(message)s").format(record)
    assert "Traceback" in shown
    assert "http://***@host:1/api" in shown
    assert "secret" not in shown


@pytest.mark.parametrize(
    "error", [KeyError("loss"), AssertionError(), failed_task(KeyError("loss"))]
)
def test_a_mistake_in_the_code_keeps_its_traceback(error, tmp_path):
    with pytest.raises(type(error)):
        run(tmp_path, fail_with(error))


def test_a_terminated_job_can_be_taken_up_again(tmp_path, capsys):
    assert run(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM)) == 75
    assert capsys.readouterr().err.strip().startswith("test: terminated. The same command")


def test_a_job_that_ends_well(tmp_path):
    assert run(tmp_path, lambda: None) == 0


def test_a_dry_run_shows_no_password():
    server = {"uri": "http://me:my secret@mlflow.example:5000"}
    config = JobConfig.model_validate({"tracking": server})
    printed = _dry_run(config, JobPlan((), ()), uses_ray=True)
    assert "uri: http://***@mlflow.example:5000" in printed
    assert "secret" not in printed


@pytest.mark.parametrize("name", JOBS)
def test_a_dry_run_names_ray_where_the_job_starts_one(name):
    module = importlib.import_module(f"ray_jobs.{JOBS[name].module}")
    assert module.JOB.uses_ray == ("connected(" in inspect.getsource(module))


def test_a_dry_run_of_a_job_without_ray_names_none():
    config = JobConfig.model_validate({})
    assert "would run on a Ray of its own" in _dry_run(config, JobPlan((), ()), uses_ray=True)
    assert "would run" not in _dry_run(config, JobPlan((), ()), uses_ray=False)

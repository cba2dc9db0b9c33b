"""Environment variables: set before MLflow is imported, handed to workers, the user's first."""

import json
import os
import subprocess
import sys

from ray._private import ray_constants

from ray_jobs.cli.environment import ENVIRONMENT, set_environment, worker_environment


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "99")
    monkeypatch.delenv("MLFLOW_UV_AUTO_DETECT")
    set_environment()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "99"
    assert os.environ["MLFLOW_UV_AUTO_DETECT"] == "false"
    assert worker_environment(None)["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "99"


def test_workers_get_all_but_what_a_submitted_job_sets_itself():
    assert worker_environment(None).keys() == ENVIRONMENT.keys()
    submitted = {"runtime_env": {"env_vars": {"MLFLOW_DISABLE_TELEMETRY": "false", "A": "1"}}}
    handed = worker_environment(json.dumps(submitted)).keys()
    assert handed == ENVIRONMENT.keys() - {"MLFLOW_DISABLE_TELEMETRY"}
    assert worker_environment(json.dumps({"metadata": {}})).keys() == ENVIRONMENT.keys()


def test_every_program_has_them_before_it_imports_mlflow():
    program = (
        "import sys, ray_jobs, os\n"
        "assert not {'mlflow', 'ray', 'torch'} & set(sys.modules)\n"
        "print(*(f'{name}={os.environ[name]}' for name in sys.argv[1:]))"
    )
    bare = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, "-c", program, *ENVIRONMENT], env=bare, capture_output=True, text=True
    )
    assert done.stdout.split() == [f"{name}={value}" for name, value in ENVIRONMENT.items()]


def test_workers_under_uv_run_install_nothing():
    """The hook of Ray is on by default, and looks at the parents of the driver."""
    assert not ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV

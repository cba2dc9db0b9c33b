"""Which Ray a job runs on."""

import os
import re
import subprocess
import sys

import pytest

from pipelines.config.base import RaySettings
from pipelines.errors import JobFailed, UserError
from ray_jobs.cli.cluster import _give_token, check_ray, connected, ray_address


@pytest.mark.parametrize(
    ("setting", "variable", "address"),
    [
        (None, "", None),
        (None, "local", None),
        ("local", "10.0.0.1:6379", None),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        ("auto", "10.0.0.1:6379", "auto"),
    ],
)
def test_local_is_a_ray_of_its_own_with_its_settings(monkeypatch, setting, variable, address):
    monkeypatch.setenv("RAY_ADDRESS", variable)
    assert ray_address(RaySettings(address=setting)) == address


@pytest.mark.parametrize("address", ["host", "host:", "host:port", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(UserError, match=r"ray.address \(.*\) must be auto, HOST:PORT or ray://"):
        check_ray(RaySettings(address=address))


def test_a_ray_that_does_not_start_is_a_known_failure():
    too_small = RaySettings.model_construct(address="local", num_cpus=1, object_store_bytes=1)
    with pytest.raises(JobFailed, match=r"Ray did not start: .*memory"), connected(too_small):
        pass


@pytest.mark.ray
def test_sigterm_while_ray_starts_ends_as_at_any_other_time(tmp_path):
    program = """
import os, signal, sys, threading, time
from pathlib import Path
from pipelines.config.base import JobConfig
from ray_jobs.cli.job import Job, JobPlan, run_job
from ray_jobs.cli.jobs import JobSummary
from ray_jobs.cli.cluster import connected

def terminate_once_ray_has_its_handler():
    while getattr(signal.getsignal(signal.SIGTERM), "__module__", "").split(".")[0] != "ray":
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGTERM)

def work(config):
    threading.Thread(target=terminate_once_ray_has_its_handler, daemon=True).start()
    with connected(config.ray):
        print("connected")

summary = JobSummary("example", "", "", ())
job = Job(summary, JobConfig, lambda config: JobPlan((), ()), work)
sys.exit(run_job(job, [sys.argv[1], "ray.num_cpus=1"]))
"""
    settings = tmp_path / "example.yaml"
    settings.write_text("{}")
    done = subprocess.run(
        [sys.executable, "-c", program, settings], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == os.EX_TEMPFAIL, done.stderr
    assert "example: terminated. The same command continues from there." in done.stderr
    assert "connected" not in done.stdout


def test_a_folder_too_long_for_sockets_of_ray_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("TMPDIR", "/scratch/" + "x" * 80)
    with pytest.raises(UserError, match=r"^TMPDIR \(/scratch/x+\) is too long: .* RAY_TMPDIR=/tmp"):
        check_ray(RaySettings())
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_ray(RaySettings())


def test_a_ray_of_its_own_gets_a_token_where_home_cannot_keep_one(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    _give_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setenv("HOME", "/proc/nohome")
    _give_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.ray
def test_ray_starts_without_a_word_and_once_and_nothing_answers_as_its_dashboard():
    """At Ray's usual port, that of another Ray would, and would know none of its actors."""
    program = """
import os, socket
import ray_jobs
import ray
from ray.dashboard.utils import ray_address_to_api_server_url
from pipelines.config.base import RaySettings
from ray_jobs.cli.cluster import connected

with connected(RaySettings(num_cpus=1)):
    url = ray_address_to_api_server_url(ray.get_runtime_context().gcs_address)
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as client:
        print(port == "8265", client.connect_ex((host, int(port))) == 0)
    os.write(2, b"said by the job\\n")
try:
    ray.put(0)
except Exception as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.stderr == "said by the job\n"
    assert re.fullmatch("False False\n.*Ray has not been started yet.*\n", done.stdout)


@pytest.mark.ray
def test_workers_ask_their_own_ray_when_another_starts_on_the_machine():
    program = """
import subprocess, sys
import ray
from ray.util.state import get_actor
from pipelines.config.base import RaySettings
from ray_jobs.cli.cluster import connected

OTHER = "import ray; ray.init(address='local', num_cpus=0, include_dashboard=False); input()"

@ray.remote(num_cpus=0)
class Worker:
    def state(self):
        return get_actor(ray.get_runtime_context().get_actor_id()).state

with connected(RaySettings(num_cpus=1), dashboard=True):
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "Started" not in (line := other.stderr.readline()):
        assert line
    worker = Worker.options(runtime_env={"env_vars": {"SOME": "1"}}).remote()
    print(ray.get(worker.state.remote()))
    other.communicate("\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "ALIVE\n", done.stderr

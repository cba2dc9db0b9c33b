"""Following a job whose server goes away, falls silent, or is another one afterwards."""

import asyncio
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import ray
from aiohttp import web
from ray.job_submission import JobSubmissionClient

from ray_jobs.cli.main import main
from ray_jobs.submit import follow
from tests.helpers.programs import REPOSITORY
from tests.helpers.training import unused_port

DETAILS = {"type": "SUBMISSION", "submission_id": "a", "status": "RUNNING", "entrypoint": "xkd"}


class Head:
    """What a job server knows, which a test changes while it serves."""

    def __init__(self):
        self.status, self.exit_code, self.log = "RUNNING", None, ["step 1\n"]
        self.is_silent, self.is_failing, self.stopped = False, False, []
        self.was_asked = threading.Event()
        self.ends = asyncio.Event()

    async def version(self, _):
        found = {"version": "4", "ray_version": ray.__version__, "ray_commit": "c"}
        return web.json_response(found | {"session_name": "s"})

    async def accept(self, _):
        return web.json_response({"job_id": "a", "submission_id": "a"})

    async def stop(self, request):
        if self.status is None:
            return web.Response(text="Job a does not exist", status=404)
        self.stopped.append(request.match_info["job"])
        return web.json_response({"stopped": self.status == "RUNNING"})

    async def job(self, _):
        self.was_asked.set()
        if self.is_failing:
            return web.Response(text="Traceback (most recent call last):\nValueError", status=500)
        if self.status is None:
            return web.Response(text="Job a does not exist", status=404)
        return web.json_response(
            DETAILS | {"status": self.status, "driver_exit_code": self.exit_code}
        )

    async def tail(self, request):
        if self.status is None:
            return web.Response(text="Job a does not exist", status=404)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for text in self.log:
            await socket.send_str(text)
        await self.ends.wait()
        while self.is_silent:  # as a machine without power
            await asyncio.sleep(0.05)
        return socket


@contextmanager
def serving(port):
    head, ready, loop = Head(), threading.Event(), asyncio.new_event_loop()

    async def start():
        application = web.Application()
        application.add_routes(
            [
                web.get("/api/version", head.version),
                web.post("/api/jobs/", head.accept),
                web.get("/api/jobs/{job}", head.job),
                web.post("/api/jobs/{job}/stop", head.stop),
                web.get("/api/jobs/{job}/logs/tail", head.tail),
            ]
        )
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        ready.set()

    def serve():
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(30)
    yield head, loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.fixture
def head(monkeypatch):
    monkeypatch.setattr(follow, "_RECONNECT_SECONDS", 0.05)
    monkeypatch.setattr(follow, "_SILENCE_SECONDS", 0.2)
    port = unused_port()
    with serving(port) as (head, loop):
        # Ray's client reads it even if it is given another address.
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{port}")
        head.address = f"http://127.0.0.1:{port}"
        head.client = JobSubmissionClient(head.address)
        head.change = lambda **values: loop.call_soon_threadsafe(change, head, values)
        yield head


def change(head, values):
    vars(head).update(values)
    head.ends.set()


def later(head, **values):
    threading.Timer(0.5, head.change, kwargs=values).start()


def test_the_log_and_the_exit_code_of_a_job(head, capsys):
    later(head, status="FAILED", exit_code=75)
    assert follow.follow(head.client, "a") == 75
    assert capsys.readouterr().out == "step 1\n"


@pytest.mark.parametrize("is_silent", [False, True], ids=["closed", "silent"])
def test_another_head_that_does_not_know_the_job_is_told(head, capsys, is_silent):
    """Whether the old one closed its connections or lost its power."""
    later(head, status=None, is_silent=is_silent)
    assert follow.follow(head.client, "a") == 1
    assert "does not know a any more" in capsys.readouterr().out


def submit(head, *arguments):
    return main(["submit", "--address", head.address, *arguments])


def test_what_has_ended_is_not_asked_to_stop(head, capsys):
    assert submit(head, "stop", "a") == 0
    assert "a was asked to stop and saves a checkpoint first" in capsys.readouterr().out
    head.status = "SUCCEEDED"
    assert submit(head, "stop", "a") == 0
    assert capsys.readouterr().out == "a has ended before: SUCCEEDED\n"


@pytest.mark.parametrize("action", ["stop", "logs"])
def test_an_unknown_job_is_named(head, capsys, action):
    head.status = None
    assert submit(head, action, "a") == 2
    assert capsys.readouterr().err.startswith(f"submit: no job 'a' at {head.address}; xkd submit l")


def test_a_job_server_that_fails_is_one_line(head, capsys):
    head.is_failing = True
    assert submit(head, "logs", "a") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"submit: the job server at {head.address} fails: ")


def test_ctrl_c_before_the_upload_submits_nothing(head, tmp_path):
    head.status = "PENDING"
    command = [sys.executable, "-m", "ray_jobs.cli.main", "submit", "--address", head.address]
    command += ["--home", str(tmp_path), "ingest", "smoke"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
    try:
        submitted = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert head.was_asked.wait(120)  # the small job is waited for
    submitted.send_signal(signal.SIGINT)
    out, err = submitted.communicate(timeout=60)
    assert out.startswith("package: ")
    assert (submitted.returncode, err) == (130, "\nsubmit: interrupted, nothing was submitted\n")
    assert head.stopped == ["a"]

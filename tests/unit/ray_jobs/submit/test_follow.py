"""Following a job whose server goes away, falls silent, or is another one afterwards."""

import asyncio
import threading
from contextlib import contextmanager

import pytest
import ray
from aiohttp import web
from ray.job_submission import JobSubmissionClient

from ray_jobs.submit import follow
from tests.helpers.training import unused_port

DETAILS = {"type": "SUBMISSION", "submission_id": "a", "status": "RUNNING", "entrypoint": "xkd"}


class Head:
    """What a job server knows, which a test changes while it serves."""

    def __init__(self):
        self.status, self.exit_code, self.log = "RUNNING", None, ["step 1\n"]
        self.is_silent = False
        self.ends = asyncio.Event()

    async def version(self, _):
        found = {"version": "4", "ray_version": ray.__version__, "ray_commit": "c"}
        return web.json_response(found | {"session_name": "s"})

    async def job(self, _):
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
                web.get("/api/jobs/{job}", head.job),
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
        head.client = JobSubmissionClient(f"http://127.0.0.1:{port}")
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

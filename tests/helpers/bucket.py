"""A server that speaks S3 (moto) in a process of its own, which can be made to fail for a while."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "xkd"
OVERLOADED = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>SlowDown</Code>"
    b"<Message>Please reduce your request rate.</Message></Error>"
)


class Server:
    """A running server; `environment` says where it is, as for a real one."""

    def __init__(self, process: subprocess.Popen[str], port: int, control: Path) -> None:
        self.process, self._control = process, control
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }
        self.store = pafs.S3FileSystem(
            endpoint_override=f"http://127.0.0.1:{port}",
            region="us-east-1",
            access_key="test",
            secret_key="test",
            allow_bucket_creation=True,
        )
        self.store.create_dir(BUCKET)

    def read_only(self, is_on: bool) -> None:
        """Refuses whatever would write."""
        self._control.write_text("read-only" if is_on else "")

    def forbidding(self, what: str) -> None:
        """Refuses one kind of request, `LIST` or a method; with an empty text, none."""
        self._control.write_text(f"forbid {what}" if what else "")

    def refusing(self, code: str) -> None:
        """Refuses everything with a code of S3; with an empty one, nothing."""
        self._control.write_text(f"refuse {code}" if code else "")

    def clock(self, seconds: float) -> None:
        """Has a clock that is ahead, and as S3 refuses requests of 15 minutes ago."""
        self._control.write_text(f"clock {seconds}" if seconds else "")

    def overloaded(self, is_on: bool) -> None:
        """Answers 503 to everything."""
        self._control.write_text("overloaded" if is_on else "")

    def slow(self, is_on: bool) -> None:
        """Takes half a second for whatever writes, so that a kill can hit an upload."""
        self._control.write_text("slow" if is_on else "")

    def overloaded_for(self, seconds: float) -> None:
        """Answers 503 to everything for a while."""
        self.overloaded(True)
        threading.Timer(seconds, self.overloaded, (False,)).start()

    def names(self, folder: str) -> list[str]:
        """All keys below a folder, relative to it."""
        selector = pafs.FileSelector(f"{BUCKET}/{folder}", recursive=True, allow_not_found=True)
        found = self.store.get_file_info(selector)
        skipped = len(f"{BUCKET}/{folder}/")
        return sorted(info.path[skipped:] for info in found if info.type == pafs.FileType.File)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Starts a server with an empty bucket; `folder` keeps a small file that controls it."""
    control = folder / "control"
    control.write_text("")
    process = subprocess.Popen(
        [sys.executable, __file__, str(control)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    server = Server(process, int(process.stdout.readline()), control)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment.items():
            environment.setenv(name, value)
        yield server
    process.communicate()


def main(control_file: str, host: str = "127.0.0.1", port: str = "0") -> None:
    """Serves until nobody holds its input open any more."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    control = Path(control_file)
    application = DomainDispatcherApplication(create_backend_app)

    def controlled(environ, start_response):
        mode = control.read_text()
        writes = environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE")
        if mode == "overloaded":
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [OVERLOADED]
        kind, _, value = mode.partition(" ")
        if kind == "refuse" or (kind == "clock" and _is_old(environ, time.time() + float(value))):
            now = time.time() + (float(value) if kind == "clock" else 0)
            headers = [("Content-Type", "application/xml"), ("Date", formatdate(now, usegmt=True))]
            start_response("403 Forbidden", headers)
            code = value if kind == "refuse" else "RequestTimeTooSkewed"
            head = environ["REQUEST_METHOD"] == "HEAD"
            return [] if head else [OVERLOADED.replace(b"SlowDown", code.encode())]
        is_list = environ["REQUEST_METHOD"] == "GET" and "list-type" in environ["QUERY_STRING"]
        asked = "LIST" if is_list else environ["REQUEST_METHOD"]
        if (kind, value) == ("forbid", asked):
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [OVERLOADED.replace(b"SlowDown", b"AccessDenied")]
        if mode == "slow" and writes:
            time.sleep(0.5)
        if mode == "read-only" and writes:
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [OVERLOADED.replace(b"SlowDown", b"AccessDenied")]
        return application(environ, start_response)

    server = make_server(host, int(port), controlled, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)


def _is_old(environ: Mapping[str, Any], now: float) -> bool:
    signed = datetime.strptime(environ["HTTP_X_AMZ_DATE"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return abs(now - signed.timestamp()) > 15 * 60


def wait_until(condition, seconds: float = 60.0) -> None:
    """Waits until a condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])

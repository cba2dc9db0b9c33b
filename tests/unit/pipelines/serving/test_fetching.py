"""A service fetches what its settings allow: no file, no address of its own network otherwise."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from aiohttp.abc import AbstractResolver

from pipelines.serving.addresses import PublicResolver, is_public
from pipelines.serving.fetching import Fetcher
from pipelines.serving.refusal import RefusedError

WEB = ("https://", "http://")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()  # without a length
            self.wfile.write(b"x" * 1_000)

    def log_message(self, *_arguments):
        pass


@pytest.fixture(scope="module")
def server():
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()


def fetched(uri, *prefixes, max_bytes=10_000):
    return asyncio.run(Fetcher(prefixes, max_bytes).fetch(uri))


def refused(uri, *prefixes, **settings):
    with pytest.raises(RefusedError) as caught:
        fetched(uri, *prefixes, **settings)
    assert "\n" not in caught.value.message
    return caught.value.status, caught.value.message


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("100.100.100.200", False),
        ("168.63.129.16", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::5db8:d822", True),
        ("2002:7f00:1::", False),
        ("host.example", False),
    ],
)
def test_which_addresses_are_public(address, expected):
    assert is_public(address) is expected


class Names(AbstractResolver):
    """Gives a public and a private address, as a name that changes its address would."""

    def __init__(self, *addresses):
        self._addresses = addresses

    async def resolve(self, host, port=0, *_family):
        return [{"hostname": host, "host": one, "port": port} for one in self._addresses]

    async def close(self):
        pass


def test_a_name_is_reached_by_its_public_addresses_alone():
    both = PublicResolver(Names("127.0.0.1", "93.184.216.34"))
    assert [one["host"] for one in asyncio.run(both.resolve("a"))] == ["93.184.216.34"]
    with pytest.raises(OSError, match="it has no public address"):
        asyncio.run(PublicResolver(Names("127.0.0.1", "::1")).resolve("a"))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 403),
        ("[::1]", 403),
        ("[::ffff:127.0.0.1]", 403),
        ("169.254.169.254", 403),
        ("localhost", 422),
        ("127.1", 403),
        ("2130706433", 403),
        ("0x7f.1", 422),
    ],
)
def test_the_own_machine_is_not_fetched_from(server, host, status):
    port = server.rpartition(":")[2]
    found, message = refused(f"http://{host}:{port}/film", *WEB)
    assert found == status
    assert "not public" in message or "no public address" in message or "cannot be read" in message


def test_a_host_that_is_named_may_be_private(server):
    assert fetched(f"{server}/media/film", server) == b"x" * 1_000
    assert fetched(f"{server}/media/film", f"{server}/media") == b"x" * 1_000
    for uri in (f"{server}/mediator", f"{server}/media/../film", f"{server}/media/%2e%2e/film"):
        assert refused(uri, f"{server}/media")[0] in (403, 422)
    host = server.replace("127.0.0.1", "127.0.0.1.evil.example")
    assert refused(f"{host}/film", server)[0] == 403
    assert refused(f"{server[:-1]}/film", server)[0] == 403  # another port
    assert refused(server.replace("//", "//127.0.0.1@") + "/x", server)[0] == 422


def test_a_redirect_is_checked_as_a_uri_is(server):
    assert fetched(f"{server}/to//film", server) == b"x" * 1_000
    assert refused(f"{server}/to/http://169.254.169.254/x", server, *WEB)[0] == 403
    assert refused(f"{server}/to/file:///etc/passwd", server)[0] == 422
    assert refused(f"{server}/to//to//to//to//to//film", server)[0] == 422


def test_what_cannot_be_fetched_is_named(server):
    assert refused(f"{server}/missing", server) == (
        422,
        f"uri ({server}/missing) cannot be read: its server answers 404",
    )
    status, message = refused(f"{server}/film", server, max_bytes=999)
    assert (status, "more than 999 bytes" in message) == (413, True)
    assert "Connect" in refused("http://127.0.0.1:1/x", "http://127.0.0.1:1")[1]
    for uri in ("ftp://a/b", "film.mp4", "s3://bucket/film", "http://", "gs://"):
        assert refused(uri, *WEB)[0] in (403, 422)


def test_files_are_read_from_allowed_folders_alone(tmp_path):
    media, secret = tmp_path / "media", tmp_path / "secret"
    media.mkdir()
    (media / "film").write_bytes(b"film")
    secret.write_bytes(b"secret")
    (media / "link").symlink_to(secret)
    (media / "folder").mkdir()
    assert fetched(f"{media}/film", str(media)) == b"film"
    assert fetched(f"file://{media}/film", f"file://{media}/") == b"film"
    assert refused(f"{media}/film", *WEB)[0] == 403
    for name in ("../secret", "link", "../absent"):
        assert refused(f"{media}/{name}", str(media))[0] == 403
    assert refused(f"{tmp_path}/media2", str(media))[0] == 403
    for name in ("absent", "folder"):
        assert refused(f"{media}/{name}", str(media))[0] == 422
    assert refused(f"{media}/film", str(media), max_bytes=3)[0] == 413


def test_a_long_uri_is_refused_in_a_short_line():
    status, message = refused("ftp://" + "x" * 4_000, "https://")
    assert status == 403
    assert len(message) < 300

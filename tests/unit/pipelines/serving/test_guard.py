"""What passes the guard: the own machine without a token, everybody with it, up to a size."""

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from pipelines.serving.guard import Guard, hash_of


async def size(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


async def slow(_request: Request) -> PlainTextResponse:
    await asyncio.sleep(60)
    return PlainTextResponse("late")


def client(token=None, host="127.0.0.1", base="http://localhost:8000"):
    app = Starlette(
        routes=[
            Route("/size", size, methods=["POST"]),
            Route("/slow", slow),
            Route("/health", slow),
        ]
    )
    app.add_middleware(
        Guard, token_hash=hash_of(token) if token else None, max_bytes=100, max_seconds=0.2
    )
    return TestClient(app, base_url=base, client=(host, 1234))


@pytest.mark.parametrize("base", ["http://localhost", "http://127.0.0.1:80", "http://[::1]:8000"])
def test_without_a_token_the_own_machine_is_answered(base):
    assert client(base=base).post("/size", content=b"12345").text == "5"
    assert client(host="::1", base=base).post("/size", content=b"12345").text == "5"


@pytest.mark.parametrize(
    ("host", "base"),
    [
        ("192.0.2.1", "http://localhost"),
        ("unknown", "http://localhost"),
        ("127.0.0.1", "http://other.example"),
        ("127.0.0.1", "http://localhost.example:8000"),
    ],
)
def test_without_a_token_others_and_pages_of_other_sites_are_refused(host, base):
    answer = client(host=host, base=base).post("/size", content=b"1")
    assert answer.status_code == 403
    assert "its own machine alone" in answer.json()["detail"]


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic right", "right"])
def test_a_request_without_the_token_is_refused(header):
    headers = {} if header is None else {"Authorization": header}
    answer = client("right", host="192.0.2.1").post("/size", content=b"1", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json() == {"detail": "a token is needed: Authorization: Bearer TOKEN"}


def test_a_request_with_the_token_is_answered_from_anywhere():
    headers = {"Authorization": "Bearer right"}
    answer = client("right", host="192.0.2.1", base="http://service.example").post(
        "/size", content=b"123", headers=headers
    )
    assert answer.text == "3"


def test_a_large_request_is_refused_whatever_it_declares():
    assert client().post("/size", content=b"x" * 100).text == "100"

    def parts():
        for _ in range(11):
            yield b"x" * 10

    for content in (b"x" * 101, parts()):
        answer = client().post("/size", content=content)
        assert answer.status_code == 413
        assert "more than 100 bytes" in answer.text


def test_a_slow_request_is_ended():
    answer = client().get("/slow")
    assert answer.status_code == 408
    assert answer.json() == {"detail": "the request took longer than 0.2 s"}

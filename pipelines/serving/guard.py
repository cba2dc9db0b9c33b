"""What each request passes before the service reads it: address, token, size and time.

no token set    clients of this machine alone, who name it as such (no other site's scripts)
token set       `Authorization: Bearer TOKEN`, from anywhere
"""

import asyncio
import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from pipelines.config.serve import LOOPBACK

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OPEN = ("/health", "/docs", "/openapi.json")
"""Paths that need no token: they tell how the service is used, and no more."""


def hash_of(token: str) -> bytes:
    """Returns what a guard keeps instead of the token."""
    return hashlib.sha256(token.encode()).digest()


class Guard:
    """Refuses requests before the app sees them.

    Args:
        app: An ASGI app.
        token_hash: Hash of the token that requests must have; None if none is set.
        max_bytes: Limit of a request's body.
        max_seconds: Limit of its time, with the upload.
    """

    def __init__(
        self, app: App, *, token_hash: bytes | None, max_bytes: int, max_seconds: float
    ) -> None:
        self._app = app
        self._token_hash = token_hash
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._timed(scope, self._counted(receive), send)

    def _refusal(self, scope: Scope, headers: dict[bytes, str]) -> JSONResponse | None:
        if self._token_hash is None:
            if not _is_here(scope, headers.get(b"host", "")):
                return _answer(403, "without a token this service answers its own machine alone")
        elif scope["path"] not in OPEN:
            kind, _, token = headers.get(b"authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(
                hash_of(token.strip()), self._token_hash
            ):
                return _answer(
                    401,
                    "a token is needed: Authorization: Bearer TOKEN",
                    {"WWW-Authenticate": "Bearer"},
                )
        length = headers.get(b"content-length", "0")
        if not length.isdigit() or int(length) > self._max_bytes:
            return _answer(413, self._too_large())
        return None

    def _too_large(self) -> str:
        return f"the request has more than {self._max_bytes} bytes"

    def _counted(self, receive: Receive) -> Receive:
        num_bytes = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise HTTPException(413, self._too_large())
            return message

        return counted

    async def _timed(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def sent(message: MutableMapping[str, Any]) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await asyncio.wait_for(self._app(scope, receive, sent), self._max_seconds)
        except TimeoutError:
            if has_begun:
                raise
            answer = _answer(408, f"the request took longer than {self._max_seconds:g} s")
            await answer(scope, receive, send)


def _answer(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": message}, status, headers)


def _is_here(scope: Scope, host: str) -> bool:
    """Whether a client is on this machine and names it by a name of its own.

    A page of another site that a browser on this machine shows names that site.
    """
    client = (scope.get("client") or ("",))[0]
    try:
        is_loopback = ipaddress.ip_address(client).is_loopback
    except ValueError:
        is_loopback = False
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return is_loopback and name.strip("[]").lower() in LOOPBACK

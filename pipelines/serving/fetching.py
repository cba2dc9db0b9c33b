"""Fetches what a client names by a URI, as far as the settings allow it.

https://host/film.mp4     fetched if the host is public, or named in `uris`
s3://bucket/film.mp4      read if its bucket or prefix is in `uris`, with the server's credentials
/media/film.mp4           read if the folder is in `uris`, and no link leads out of it
"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import aiohttp
from yarl import URL

from pipelines.filesystems import filesystem_of
from pipelines.media.container import DecodeError, open_file
from pipelines.redaction import one_line
from pipelines.serving.addresses import PublicResolver, is_public
from pipelines.serving.refusal import RefusedError

_WEB = ("http", "https")
_MAX_REDIRECTS = 3
_CHUNK = 1 << 20
_SHOWN = 200
"""Characters of a URI that an answer repeats."""


class Fetcher:
    """Fetches URIs that begin with one of some prefixes.

    Args:
        prefixes: As `ServeConfig.uris`.
        max_bytes: Limit of what a URI gives.
    """

    def __init__(self, prefixes: Sequence[str], max_bytes: int) -> None:
        self._prefixes = tuple(prefixes)
        self._max_bytes = max_bytes

    async def fetch(self, uri: str) -> bytes:
        """Returns what a URI gives.

        Raises:
            RefusedError: If it is not allowed, not there or too large.
        """
        if uri.startswith(("http://", "https://")):
            return await self._web(uri)
        if uri.startswith(("/", "file://")):
            return await asyncio.to_thread(self._local, uri.removeprefix("file://"))
        if "://" not in uri or not self._is_in_store(uri):
            raise self._not_allowed(uri)
        return await asyncio.to_thread(self._stored, uri)

    def _not_allowed(self, uri: str) -> RefusedError:
        return RefusedError(
            403, f"uri ({_shown(uri)}) is not allowed by the service's setting uris"
        )

    async def _web(self, uri: str) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            url = _parsed(uri)
            is_named = any(_is_below(url, prefix) for prefix in self._prefixes)
            if not is_named and f"{url.scheme}://" not in self._prefixes:
                raise self._not_allowed(uri)
            if not is_named and not is_public(url.host or "") and _is_address(url.host or ""):
                raise RefusedError(
                    403, f"uri ({_shown(uri)}) is not allowed: its address is not public"
                )
            try:
                found = await self._request(url, is_named=is_named)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise _unreadable(uri, getattr(error, "os_error", error)) from error
            if isinstance(found, bytes):
                return found
            uri = found
        raise _unreadable(uri, ValueError("too many redirects"))

    async def _request(self, url: URL, *, is_named: bool) -> bytes | str:
        """Returns the body, or where a redirect leads."""
        resolver = None if is_named else PublicResolver()
        connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False)
        async with (
            aiohttp.ClientSession(connector=connector, auto_decompress=False) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status in (301, 302, 303, 307, 308):
                return str(url.join(URL(response.headers.get("location", ""))))
            if response.status != 200:
                raise ValueError(f"its server answers {response.status}")
            if (response.content_length or 0) > self._max_bytes:
                raise self._too_large(str(url))
            body = bytearray()
            async for chunk in response.content.iter_chunked(_CHUNK):
                body += chunk
                if len(body) > self._max_bytes:
                    raise self._too_large(str(url))
            return bytes(body)

    def _too_large(self, uri: str) -> RefusedError:
        return RefusedError(413, f"uri ({_shown(uri)}) has more than {self._max_bytes} bytes")

    def _local(self, path: str) -> bytes:
        folders = [Path(one.removeprefix("file://")) for one in self._prefixes if _is_folder(one)]
        try:
            file = open_file(path)
        except DecodeError as error:
            if not any(Path(os.path.normpath(path)).is_relative_to(one) for one in folders):
                raise self._not_allowed(path) from None
            raise _unreadable(path, ValueError(error.message)) from None
        with open(file, "rb") as opened:
            # Of the open file, which no link can change any more.
            real = Path(os.path.realpath(f"/proc/self/fd/{opened.fileno()}"))
            if not any(real.is_relative_to(folder.resolve()) for folder in folders):
                raise self._not_allowed(path)
            body = opened.read(self._max_bytes + 1)
        if len(body) > self._max_bytes:
            raise self._too_large(path)
        return body

    def _is_in_store(self, uri: str) -> bool:
        prefixes = [one.rstrip("/") + "/" for one in self._prefixes if "://" in one]
        stores = [one for one in prefixes if one.partition("://")[2].strip("/")]
        is_plain = ".." not in unquote(uri).split("/") and "?" not in uri
        return is_plain and any(uri.startswith(one) for one in stores)

    def _stored(self, uri: str) -> bytes:
        try:
            filesystem, path = filesystem_of(uri)
            with filesystem.open_input_stream(path) as file:
                body: bytes = file.read(self._max_bytes + 1)
        except (OSError, ValueError, ImportError) as error:
            raise _unreadable(uri, error) from error
        if len(body) > self._max_bytes:
            raise self._too_large(uri)
        return body


def _parsed(uri: str) -> URL:
    try:
        url = URL(uri)
        is_plain = url.scheme in _WEB and url.host and not url.user and not url.password
    except ValueError:
        is_plain = None
    if not is_plain or ".." in unquote(url.path).split("/"):
        raise RefusedError(422, f"uri ({_shown(uri)}) is no plain address of the web")
    return url


def _is_below(url: URL, prefix: str) -> bool:
    """Whether a URL has the host of a prefix that names one, and lies in its folder."""
    if not prefix.startswith(("http://", "https://")) or not URL(prefix).host:
        return False
    named = URL(prefix)
    folder = named.path.rstrip("/") + "/"
    return url.origin() == named.origin() and f"{url.path}/".startswith(folder)


def _is_address(host: str) -> bool:
    """Whether a host is an address, for which no name is resolved."""
    return ":" in host or host.replace(".", "").isdigit()


def _is_folder(prefix: str) -> bool:
    return prefix.startswith(("/", "file:///"))


def _unreadable(uri: str, error: BaseException) -> RefusedError:
    return RefusedError(422, f"uri ({_shown(uri)}) cannot be read: {one_line(error)}")


def _shown(uri: str) -> str:
    return uri if len(uri) <= _SHOWN else f"{uri[:_SHOWN]}..."

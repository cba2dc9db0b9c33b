"""Access to URIs: buckets, web servers and any other store that pyarrow or fsspec opens.

pyarrow opens `s3://` and reads the usual variables (AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID and so on). The text after the bucket is the literal key, without escapes; so it
is for `gs://` and `abfs://`. pyarrow also opens `hdfs://`; fsspec opens every other scheme.

Requests to a bucket that does not answer, or says that it is overloaded, are repeated for about a
minute and a half. The first request of a process is repeated for some seconds only, because the
address may be wrong.
"""

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, BinaryIO

import aiohttp
import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs
from pyarrow import fs as pafs

from pipelines.errors import UserError
from pipelines.paths import is_uri
from pipelines.redaction import one_line

logger = logging.getLogger(__name__)

_AZURE = frozenset({"abfs", "abfss", "az"})
_OF_PYARROW = frozenset({"hdfs", "viewfs", "file"})
_WEB = frozenset({"http", "https"})
_FIRST_ATTEMPTS = 9
"""Of the first request to a bucket. Pauses double from 50 ms: about 13 s in all."""
_AWAY_SECONDS = 30.0
_ATTEMPTS = 12
"""Of later requests: about 100 s in all."""
_FIRST_SECONDS, _SECONDS = 13, 100
"""The same for Google's client, which by default asks for a quarter of an hour."""
_LOCAL = pafs.LocalFileSystem()


@dataclass(frozen=True)
class Entry:
    """A file in a listing."""

    uri: str
    byte_size: int | None
    modified: int
    """Modification time, in nanoseconds. 0 if unknown."""


@dataclass(frozen=True)
class RemoteFile:
    """A file open for sequential reading."""

    stream: BinaryIO
    byte_size: int | None
    version: str | None
    """The store's own tag, which changes with the content."""


def scheme_of(uri: str) -> str:
    """Returns the part before `://`, in lowercase."""
    return uri.partition("://")[0].lower()


def is_web(location: str) -> bool:
    """Returns whether a location is on a web server, which cannot list folders."""
    return is_uri(location) and scheme_of(location) in _WEB


def filesystem_of(location: str) -> tuple[pafs.FileSystem, str]:
    """Returns the filesystem of a location and its path there.

    Raises:
        UserError: If no installed library opens it.
    """
    if not is_uri(location):
        return _LOCAL, location
    scheme, _, rest = location.partition("://")
    try:
        if scheme.lower() in ("s3", "s3a"):
            bucket = rest.partition("/")[0]
            return _s3(bucket, _s3_endpoint()), rest.rstrip("/")
        if scheme.lower() in ("gs", "gcs"):
            return _gcs(rest.partition("/")[0]), rest.rstrip("/")
        if scheme.lower() in _AZURE:
            account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
            return _azure(rest.partition("/")[0], account), rest.rstrip("/")
        if scheme.lower() in _OF_PYARROW:
            return pafs.FileSystem.from_uri(location)
        filesystem, path = url_to_fs(location)
    except (ImportError, ValueError, OSError, pa.ArrowException) as error:
        # Not the whole location, so that several checks of one store give one message.
        store = f"{scheme}://{rest.partition('/')[0]}"
        raise UserError(f"location ({store}) cannot be opened: {store_failure(error)}") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def _s3_endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


@lru_cache(maxsize=64)
def _s3(bucket: str, endpoint: str | None) -> pafs.S3FileSystem:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if endpoint else pafs.resolve_s3_region(bucket)
    first = _s3_with(region, endpoint, _FIRST_ATTEMPTS)
    _make_contact(f"s3://{bucket} {endpoint}", first, bucket, (*_AWAY, *_OTHER_CLOCK))
    return _s3_with(region, endpoint, _ATTEMPTS)


def _s3_with(region: str, endpoint: str | None, attempts: int) -> pafs.S3FileSystem:
    return pafs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        connect_timeout=10,
        retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=attempts),
    )


_away: dict[str, tuple[float, Exception]] = {}
"""When a server did not answer, so that several checks do not all wait for it."""


def _make_contact(
    store: str, first: pafs.FileSystem, bucket: str, signs: tuple[str, ...] = ("",)
) -> None:
    """Makes sure that a server answers, whatever it says about the bucket.

    Args:
        store: Name of the server and the bucket.
        first: Its filesystem, with the patience of the first request.
        bucket: The bucket.
        signs: Texts in errors of a server that does not answer; by default any error is one.
    """
    moment, before = _away.get(store, (-math.inf, None))
    if before is not None and time.monotonic() - moment < _AWAY_SECONDS:
        raise before
    try:
        # Unlike a question for the bucket itself, a listing is refused with a reason.
        first.get_file_info(pafs.FileSelector(f"{bucket}/.xkd-contact", allow_not_found=True))
    except (OSError, pa.ArrowException) as error:
        if any(sign in str(error) for sign in signs):
            _away[store] = time.monotonic(), error
            raise


_AWAY = ("NETWORK_CONNECTION", "SERVICE_UNAVAILABLE", "SLOW_DOWN", "INTERNAL_FAILURE")
_OTHER_CLOCK = ("REQUEST_TIME_TOO_SKEWED", "REQUEST_EXPIRED")
"""The client repeats these, too."""
_NO_TOKEN = ("OAuth2 access token", "DefaultAzureCredential")
_AWAY_GOOGLE = (*_NO_TOKEN, "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN")
_REMEDIES = {
    _NO_TOKEN[0]: "Google's client finds no credentials: set GOOGLE_APPLICATION_CREDENTIALS, or "
    "run on a machine with a service account",
    _NO_TOKEN[1]: "Azure's client finds no credentials: set AZURE_STORAGE_KEY, or run on a machine "
    "with an identity",
    "NO_SUCH_BUCKET": "the bucket does not exist",
    "ACCESS_DENIED": "the store does not allow it; clients take credentials from the environment, "
    "such as AWS_ACCESS_KEY_ID",
    "INVALID_ACCESS_KEY_ID": "the store does not know these credentials",
    "SIGNATURE_DOES_NOT_MATCH": "the store does not accept these credentials",
    **dict.fromkeys(
        _OTHER_CLOCK,
        "the clock of this machine and that of the store differ by more than 15 minutes",
    ),
    **dict.fromkeys(
        ("ExpiredToken", "InvalidToken"), "the store does not accept AWS_SESSION_TOKEN any more"
    ),
    **dict.fromkeys(
        ("HTTP status 301", "PermanentRedirect", "AuthorizationHeaderMalformed"),
        "the bucket is in another region than AWS_REGION says",
    ),
    **dict.fromkeys(("HTTP status 403", "PERMISSION_DENIED"), "the store does not allow it"),
    **dict.fromkeys(_AWAY, "the store does not answer; AWS_ENDPOINT_URL and AWS_REGION say where"),
}
"""What to look at, by a sign in the text of an error."""


def store_failure(error: BaseException) -> str:
    """Returns why a store refused, in one line with what to look at."""
    text = one_line(error)
    return next((f"{remedy} ({text})" for sign, remedy in _REMEDIES.items() if sign in text), text)


@lru_cache(maxsize=64)
def _azure(container: str, account: str) -> pafs.AzureFileSystem:
    if not account:
        raise ValueError("set AZURE_STORAGE_ACCOUNT_NAME; the URI is abfs://CONTAINER/PATH")
    found = pafs.AzureFileSystem(account, account_key=os.environ.get("AZURE_STORAGE_KEY"))
    _make_contact(f"abfs://{container} {account}", found, container)
    return found


@lru_cache(maxsize=64)
def _gcs(bucket: str) -> pafs.GcsFileSystem:
    first = pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=_FIRST_SECONDS))
    _make_contact(f"gs://{bucket}", first, bucket, _AWAY_GOOGLE)
    return pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=_SECONDS))


@contextmanager
def opened(uri: str) -> Iterator[RemoteFile]:
    """Opens a file for one sequential read.

    Raises:
        OSError: If it cannot be opened. A client library may raise another exception.
    """
    if is_web(uri):
        # A large file takes longer than the five minutes that aiohttp allows a request.
        patience = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
        web: Any = fsspec.filesystem(scheme_of(uri), client_kwargs={"timeout": patience})
        facts: dict[str, Any] = {}
        with suppress(FileNotFoundError):  # some servers reject HEAD; GET decides
            facts = web.info(uri)
        with web.open(uri, "rb", block_size=0) as stream:  # 0: one request, no ranges
            tag = facts.get("ETag") or facts.get("Last-Modified")
            # The URI keeps tags unique: a server's tag may be only a time and a length.
            yield RemoteFile(stream, facts.get("size"), f"{uri} {tag}" if tag else None)
        return
    filesystem, path = filesystem_of(uri)
    with filesystem.open_input_stream(path, compression=None) as stream:
        facts = {key.lower(): value for key, value in (stream.metadata() or {}).items()}
        size = facts.get("content-length")
        info = None if size is not None else filesystem.get_file_info(path)
        tag = facts.get("etag")
        if tag is None and info is not None and info.mtime_ns:
            tag = f"{uri} {info.mtime_ns}".encode()
        yield RemoteFile(
            stream,
            int(size) if size is not None else info.size if info else None,
            tag.decode(errors="replace") if tag else None,
        )


def list_files(folder: str) -> Iterator[Entry]:
    """Yields all files below a folder.

    Raises:
        UserError: If the folder cannot be listed.
    """
    filesystem, root = filesystem_of(folder)
    prefix = f"{scheme_of(folder)}://" if is_uri(folder) else ""
    waiting = [root]
    while waiting:
        here = waiting.pop()
        try:
            found = filesystem.get_file_info(pafs.FileSelector(here))
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"({folder}) cannot be listed: {store_failure(error)}") from error
        for info in sorted(found, key=lambda info: info.path):
            if info.type == pafs.FileType.Directory:
                if info.path.rstrip("/") != here:
                    waiting.append(info.path)
                else:  # the client takes the empty name for the folder itself
                    logger.warning("(%s//): keys with // are left out; rename them", prefix + here)
            elif info.type == pafs.FileType.File:
                path = info.path.lstrip("/") if prefix else info.path
                yield Entry(f"{prefix}{path}", info.size, info.mtime_ns or 0)


def is_folder(location: str) -> bool:
    """Returns whether a location is a folder, or a key prefix in a bucket.

    Raises:
        UserError: If the store cannot be queried.
    """
    return (
        os.path.isdir(location)
        if not is_uri(location)
        else _type(location) == pafs.FileType.Directory
    )


def is_file(location: str) -> bool:
    """Returns whether a location is a file.

    Raises:
        UserError: If the store cannot be queried.
    """
    return (
        os.path.isfile(location) if not is_uri(location) else _type(location) == pafs.FileType.File
    )


def _type(uri: str) -> pafs.FileType:
    filesystem, path = filesystem_of(uri)
    try:
        return filesystem.get_file_info(path).type
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"({uri}) cannot be read: {store_failure(error)}") from error

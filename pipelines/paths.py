"""Resolution of paths against `XKD_HOME` or the working directory, and checks of URIs.

A job submitted to a cluster runs in a temporary copy of its working directory. The cluster deletes
the copy later, and with it any output at a relative path, so such a job rejects relative paths.
"""

import os
import posixpath
import re
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

PACKAGES = Path(__file__).resolve().parents[__name__.count(".")]
"""The folder that this code is imported from: the checkout, or a registered model, where module
names have a prefix (`xkd_1a2b3c4d.pipelines.paths`)."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WEB = frozenset({"http", "https"})
_ONE_SLASH = re.compile(
    r"\s*[A-Za-z][A-Za-z0-9+.-]*:/(?!/)|\s*(s3[an]?|gc?s|abfss?|az|hdfs|https?|file):(?!//)"
)
"""A URI that has lost a slash, as `os.path.normpath` and a slip leave it."""
_OTHER_NAMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs"}
"""Schemes that other programs use for the same stores."""
_BUCKETS = frozenset({"s3", "gs", "abfs"})
"""Schemes whose URIs begin with a bucket, followed by a key."""


def is_uri(location: str) -> bool:
    """Returns whether a location is a URI rather than a path.

    >>> is_uri("s3://bucket/key"), is_uri("/a://b"), is_uri("a.mp4")
    (True, False, False)
    """
    return _URI.match(location) is not None


def absolute_location(location: str) -> str:
    """Makes a path absolute, and gives a URI one spelling.

    >>> absolute_location("S3A://bucket/runs//"), absolute_location("/a/../b/")
    ('s3://bucket/runs', '/b')

    Raises:
        ValueError: If it is a URI with a password or without a bucket, if it is no URI but looks
            like one, or if it is relative in a submitted job without XKD_HOME.
    """
    if not is_uri(location):
        _check_no_uri(location)
        return _absolute_path(location)
    scheme, _, rest = location.partition("://")
    if scheme.lower() == "file":
        return _path_of_file_uri(location, rest)
    # One text for one location: stored settings are compared with those of later runs.
    scheme = _OTHER_NAMES.get(scheme.lower(), scheme.lower())
    check_password(f"{scheme}://{rest}")
    if scheme in _WEB:
        return location
    if scheme in _BUCKETS:
        _check_key(location, rest)
    if not rest.strip("/"):
        raise ValueError(f"({location}) must name a bucket or a folder")
    return f"{scheme}://{rest.rstrip('/')}"


def _check_no_uri(location: str) -> None:
    """Refuses what would become a path of this machine although it was meant as a URI."""
    if is_uri(location.strip()):
        raise ValueError(f"({location!r}) must not begin with a space")
    if found := _ONE_SLASH.match(location):
        scheme, _, rest = location.strip().partition(":")
        raise ValueError(
            f"({location}) must have two slashes after {found[0].strip().rstrip('/')} if it is a "
            f"URI: {scheme}://{rest.lstrip('/')}; a path with a colon begins with / or ./"
        )


def check_password(uri: str) -> None:
    """Makes sure that a URI holds no password, which results would show.

    Raises:
        ValueError: If it does. The message does not show it.
    """
    scheme, _, rest = uri.partition("://")
    before, at, host = rest.partition("/")[0].rpartition("@")
    if not at:
        return
    if scheme == "abfs" and ":" not in before and host.endswith(".windows.net"):
        raise ValueError(
            f"({scheme}://{before}@{host}) must name the container alone: {scheme}://{before}/PATH "
            f"with AZURE_STORAGE_ACCOUNT_NAME={host.partition('.')[0]} in the environment"
        )
    raise ValueError(
        f"({scheme}://***) must not hold a password: results would show it. Clients take "
        "theirs from the environment, such as AWS_ACCESS_KEY_ID"
    )


def _check_key(location: str, rest: str) -> None:
    """Refuses keys that stores keep apart and that no client lists as folders."""
    bucket, *parts = rest.rstrip("/").split("/")
    if not bucket:
        raise ValueError(f"({location}) must name a bucket after ://")
    if rest != rest.rstrip():
        raise ValueError(f"({location!r}) must not end with a space")
    for part in parts:
        if part in ("", ".", ".."):
            what = "two slashes in a row" if not part else f"a part {part!r}"
            raise ValueError(
                f"({location}) must not have {what} after the bucket: keys are no paths, and no "
                "client resolves them"
            )


def _path_of_file_uri(location: str, rest: str) -> str:
    path = rest.removeprefix("localhost")
    if not path.startswith("/"):
        raise ValueError(
            f"({location}) must have three slashes before an absolute path: file:///folder"
        )
    return _absolute_path(unquote(path))


def _absolute_path(path: str) -> str:
    expanded = _expanded(path)
    if expanded.is_absolute():
        return os.path.normpath(expanded)
    folder = home(path)
    if isinstance(folder, Path):
        return os.path.normpath(folder / expanded)
    scheme, _, rest = folder.partition("://")
    first, _, key = rest.partition("/")
    joined = posixpath.normpath(f"{key}/{expanded}".lstrip("/"))
    if joined.split("/")[0] == "..":
        raise ValueError(f"({path}) must not lead out of the bucket of XKD_HOME ({folder})")
    return f"{scheme}://{first}/{joined}".removesuffix("/.")


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"({path}) must name an existing user after ~, or begin with ./") from None


def moved_paths(values: Mapping[str, Any], old: Path, new: Path) -> dict[str, Any]:
    """Replaces paths in the settings of a folder that was moved together with what is beside it.

    A path that is gone lies where it lay relative to the folder:

        old    /home/me/a/runs/one           /home/me/a/runs/one/clips     gone
        new    /mnt/b/runs/one               /mnt/b/runs/one/clips         replaces it
    """
    kept = _common_ending(old, new)
    if old == new or not kept or old.exists():
        return dict(values)
    old_root, new_root = old.parents[kept - 1], new.parents[kept - 1]

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: moved(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [moved(inner) for inner in value]
        if not isinstance(value, str) or not Path(value).is_relative_to(old_root):
            return value
        there = new_root / Path(value).relative_to(old_root)
        return str(there) if there.exists() and not Path(value).exists() else value

    return {name: moved(value) for name, value in values.items()}


def _common_ending(first: Path, second: Path) -> int:
    """Counts the last names that two paths share.

    >>> _common_ending(Path("/a/runs/one"), Path("/b/c/runs/one"))
    2
    """
    pairs = zip(reversed(first.parts), reversed(second.parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1] != "/", pairs))


def home(needed_for: str) -> Path | str:
    """Returns the folder that relative paths start from; XKD_HOME may be a URI.

    Raises:
        ValueError: In a submitted job without an absolute XKD_HOME, or if that is no folder.
    """
    here = Path.cwd()
    is_copy = any(part.startswith("_ray_pkg_") for part in here.parts)
    if folder := os.environ.get("XKD_HOME"):
        try:
            return _home_of(folder, here, is_copy=is_copy)
        except ValueError as error:
            raise ValueError(f"XKD_HOME {error}") from None
    if is_copy:
        raise ValueError(
            f"({needed_for}) is relative, and a submitted job runs in a temporary copy of its "
            "working directory: give an absolute path, or set XKD_HOME with "
            '--runtime-env-json \'{"env_vars": {"XKD_HOME": "/shared/folder"}}\''
        )
    return here


def _home_of(folder: str, here: Path, *, is_copy: bool) -> Path | str:
    if not is_uri(folder):
        _check_no_uri(folder)
        path = _expanded(folder)
        if is_copy and not path.is_absolute():
            raise ValueError(
                f"({folder}) must be absolute: a submitted job runs in a temporary copy of its "
                "working directory"
            )
        return here / path
    found = absolute_location(folder)
    if found.partition("://")[0].lower() in _WEB:
        raise ValueError(f"({folder}) must be a folder or in a bucket, not on a web server")
    return found if is_uri(found) else Path(found)

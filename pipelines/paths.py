"""Resolution of paths against `XKD_HOME` or the working directory, and checks of URIs.

A job submitted to a cluster runs in a temporary copy of its working directory. The cluster deletes
the copy later, and with it any output at a relative path, so such a job rejects relative paths.
"""

import os
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
_OTHER_NAMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}
"""Schemes that other programs use for the same stores."""


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
        ValueError: If it is a URI with a password, or relative in a submitted job without XKD_HOME.
    """
    if not is_uri(location):
        return _absolute_path(location)
    scheme, _, rest = location.partition("://")
    if scheme.lower() == "file":
        return _absolute_path(unquote(rest))
    if "@" in rest.partition("/")[0]:
        raise ValueError(
            f"({scheme}://***) must not hold a password: results would show it. Clients take "
            "theirs from the environment, such as AWS_ACCESS_KEY_ID"
        )
    if scheme.lower() in _WEB:
        return location
    # One text for one location: stored settings are compared with those of later runs.
    scheme = _OTHER_NAMES.get(scheme.lower(), scheme.lower())
    if not rest.strip("/"):
        raise ValueError(f"({location}) must name a bucket or a folder")
    return f"{scheme}://{rest.rstrip('/')}"


def _absolute_path(path: str) -> str:
    expanded = Path(path).expanduser()
    if expanded.is_absolute():
        return os.path.normpath(expanded)
    folder = home(path)
    if isinstance(folder, str):
        return f"{folder}/{os.path.normpath(expanded)}"
    return os.path.normpath(folder / expanded)


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
        ValueError: In a submitted job without XKD_HOME, or with a password in that URI.
    """
    if folder := os.environ.get("XKD_HOME"):
        return absolute_location(folder) if is_uri(folder) else Path(folder).expanduser().absolute()
    here = Path.cwd()
    if any(part.startswith("_ray_pkg_") for part in here.parts):
        raise ValueError(
            f"({needed_for}) is relative, and a submitted job runs in a temporary copy of its "
            "working directory: give an absolute path, or set XKD_HOME with "
            '--runtime-env-json \'{"env_vars": {"XKD_HOME": "/shared/folder"}}\''
        )
    return here

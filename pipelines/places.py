"""Where relative paths lead: to `XKD_HOME`, else to the working directory.

A job that was submitted to a cluster runs in a temporary copy of its working directory, which is
deleted later; a relative path would lose what was made, so it is refused there.
"""

import os
from pathlib import Path


def absolute_place(place: str) -> str:
    """Makes a path absolute.

    Raises:
        ValueError: if it is a URI, or relative in a submitted job without XKD_HOME.
    """
    if "://" in place:
        raise ValueError(f"({place}) must be a path that every worker sees, not a URI")
    path = Path(place).expanduser()
    return os.path.normpath(path if path.is_absolute() else home(place) / path)


def home(needed_for: str) -> Path:
    """The folder that relative paths start from.

    Raises:
        ValueError: in a submitted job without XKD_HOME.
    """
    if folder := os.environ.get("XKD_HOME"):
        return Path(folder).expanduser().absolute()
    here = Path.cwd()
    if any(part.startswith("_ray_pkg_") for part in here.parts):
        raise ValueError(
            f"({needed_for}) is relative, and a submitted job runs in a temporary copy of its "
            "working directory: give an absolute path, or set XKD_HOME with "
            '--runtime-env-json \'{"env_vars": {"XKD_HOME": "/shared/folder"}}\''
        )
    return here

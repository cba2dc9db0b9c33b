"""Which code is running, as runs and checkpoints record it."""

import os
import subprocess
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pipelines.paths import PACKAGES

_OWN_FOLDERS = ("xkd_core", "pipelines", "ray_jobs")
CODE_VERSION = "XKD_CODE_VERSION"
"""Environment variable with the version of code that was uploaded without its repository."""
_NO_CACHE = ":(exclude,glob)**/__pycache__/**"


@cache
def code_version() -> str:
    """Returns the commit that holds this code, else that of its upload, else the package's version.

    The commit ends in `-dirty` if the code differs from it. A repository that merely encloses the
    code, such as that of a project with this package in its `.venv`, says nothing about it.
    """
    return _commit(PACKAGES) or os.environ.get(CODE_VERSION) or _version(PACKAGES)


def _commit(folder: Path) -> str | None:
    """Returns the commit of the repository that tracks the code in a folder, if one does."""
    own = Path(__file__).relative_to(PACKAGES)
    if _git(folder, "ls-files", "--error-unmatch", "--", str(own)) is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    there = [name for name in _OWN_FOLDERS if (folder / name).is_dir()]
    changes = _git(folder, "status", "--porcelain", "--", *there, _NO_CACHE)
    return commit if changes == "" else f"{commit}-dirty"


def _git(folder: Path, *arguments: str) -> str | None:
    """Returns what git prints about a folder; None if it fails."""
    # A hook of another repository sets GIT_DIR, which goes before the folder.
    environment = {name: v for name, v in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def _version(folder: Path) -> str:
    """Returns the version of the code in a folder, which may not be what is installed.

    A cluster runs uploaded code, where nothing or another version is installed.
    """
    try:
        return f"xkd {tomllib.loads((folder / 'pyproject.toml').read_text())['project']['version']}"
    except (OSError, ValueError, KeyError):
        pass
    try:
        installed = distribution("xkd")
    except PackageNotFoundError:
        return "xkd, unknown version"
    if Path(str(installed.locate_file(""))).resolve() != folder:
        return "xkd, unknown version"
    return f"xkd {installed.version}"

"""The manifest of a registered model: the hash of each of its files, so that a change is noticed.

    MODEL/xkd_manifest.json                 {"files": {"config.json": "9f2c...", ...}}
    tag xkd.manifest of the version         hash of that file

Someone who changes a file in the artifact store must change the manifest too, and then its hash is
not what the registry says. Who can change the registry as well is stopped by a signature alone
(`signing.py`).
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from pipelines.errors import UserError

MANIFEST_FILE = "xkd_manifest.json"
SIGNATURE_FILE = "model.sig"
MANIFEST_TAG = "xkd.manifest"
FORMAT_VERSION = 1
_CACHE = "__pycache__/"
_MADE_LATER = ("registered_model_meta", MANIFEST_FILE, SIGNATURE_FILE)
"""Not in the manifest; the first is MLflow's, which writes it while it downloads."""


def write_manifest(folder: Path) -> str:
    """Writes the manifest of a model; returns its hash."""
    values = {"format_version": FORMAT_VERSION, "files": _hashes(folder)}
    (folder / MANIFEST_FILE).write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
    return _hash(folder / MANIFEST_FILE)


def remove_leftovers(folder: Path) -> None:
    """Removes bytecode that others compiled beside the code: Python would run it unseen."""
    for cache in [*folder.rglob("__pycache__")]:
        shutil.rmtree(cache)


def check_files(
    folder: Path,
    manifest: str | None,
    name: str,
    files: Iterable[str] | None = None,
    *,
    in_use: bool = False,
) -> None:
    """Makes sure that a model is what was registered; one of an older release passes.

    Args:
        folder: The model.
        manifest: Hash of its manifest; None without one.
        name: The model, for messages.
        files: The files to check. Default: all, and none may be there in addition.
        in_use: Whether the folder is where MLflow loads the model too, which leaves bytecode.

    Raises:
        UserError: If a file differs, is missing or was added; it names the file.
    """
    if manifest is None:
        return
    file = folder / MANIFEST_FILE
    if not file.is_file() or _hash(file) != manifest:
        raise _refusal(name, MANIFEST_FILE, "differs from" if file.is_file() else "is missing from")
    expected = json.loads(file.read_text())["files"]
    for path in expected if files is None else files:
        if not (folder / path).is_file():
            raise _refusal(name, path, "is missing from")
        if _hash(folder / path) != expected.get(path):
            raise _refusal(name, path, "differs from")
    if files is None:
        added = sorted(_paths(folder) - set(expected))
        for path in added if not in_use else [one for one in added if _CACHE not in one]:
            raise _refusal(name, path, "is not in")


def _refusal(name: str, path: str, relation: str) -> UserError:
    return UserError(
        f"model ({name}) is refused: its file {path} {relation} what was registered; "
        "restore the file, or register the encoder again"
    )


def _hashes(folder: Path) -> dict[str, str]:
    return {path: _hash(folder / path) for path in sorted(_paths(folder))}


def _paths(folder: Path) -> set[str]:
    """Every file that a manifest names."""
    found = {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    return found - set(_MADE_LATER)


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

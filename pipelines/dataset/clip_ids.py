"""Lists of clip ids, one a line: what to leave out of a training."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pipelines.errors import UserError
from pipelines.files import replacing

EXCLUDE_SHA256 = "exclude_sha256"
"""Under this name a run keeps the `clip_ids_sha256` of what it leaves out."""


def read_clip_ids(file: str) -> frozenset[str]:
    """Reads ids; empty lines and what follows a `#` mean nothing.

    Raises:
        UserError: If the file cannot be read.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"exclude ({file}) cannot be read: {error}") from error
    return frozenset(filter(None, (line.partition("#")[0].strip() for line in lines)))


def clip_ids_sha256(file: str | None) -> str:
    """Says which ids a list names, whatever their order; empty without a list.

    Raises:
        UserError: If the file cannot be read.
    """
    if file is None:
        return ""
    return hashlib.sha256("\n".join(sorted(read_clip_ids(file))).encode()).hexdigest()


def write_clip_ids(file: Path, ids: Iterable[str], about: str) -> None:
    """Writes ids under a line that says what they are, whole or not at all."""
    with replacing(file) as temporary:
        temporary.write_text("\n".join([f"# {about}", *sorted(ids)]) + "\n", encoding="utf-8")

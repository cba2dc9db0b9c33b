"""Lists of clip ids, one per line, that a training run excludes."""

import hashlib
from collections.abc import Iterable

from pipelines.errors import UserError
from pipelines.files import replacing
from pipelines.storage import AnyPath, path_of

EXCLUDE_SHA256 = "exclude_sha256"
"""Key under which a run records the `clip_ids_sha256` of its excluded clips."""


def read_clip_ids(file: str) -> frozenset[str]:
    """Reads clip ids, ignoring empty lines and text after a `#`.

    Raises:
        UserError: If the file cannot be read.
    """
    try:
        lines = path_of(file).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"exclude ({file}) cannot be read: {error}") from error
    return frozenset(filter(None, (line.partition("#")[0].strip() for line in lines)))


def clip_ids_sha256(file: str | None) -> str:
    """Hashes the ids of a list regardless of order; returns "" without a list.

    Raises:
        UserError: If the file cannot be read.
    """
    if file is None:
        return ""
    return hashlib.sha256("\n".join(sorted(read_clip_ids(file))).encode()).hexdigest()


def write_clip_ids(file: AnyPath, ids: Iterable[str], about: str) -> None:
    """Writes ids atomically below a comment that describes them."""
    with replacing(file) as temporary:
        temporary.write_text("\n".join([f"# {about}", *sorted(ids)]) + "\n", encoding="utf-8")

"""Finds the artifacts of an SQLite file again after its folder was renamed, moved or copied.

MLflow stores absolute paths. XKD keeps artifacts beside the SQLite file, so a root that is gone is
replaced by the folder beside it:

    stored   /home/me/a/mlartifacts/1/models/m-0123/artifacts      gone
    file     /mnt/b/mlflow.db                                      was /home/me/a/mlflow.db
    mended   /mnt/b/mlartifacts/1/models/m-0123/artifacts
"""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

from pipelines.redaction import one_line
from pipelines.tracking.sqlite import artifact_location, local_path

logger = logging.getLogger(__name__)

ARTIFACTS_FOLDER = "mlartifacts"
"""Folder of the artifacts, beside the SQLite file."""
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Where MLflow stores locations of artifacts."""
_PATIENCE_SECONDS = 30.0
"""How long to wait for another process that writes to the file."""


def mend_moved_artifacts(database: Path) -> None:
    """Replaces roots that do not exist any more by the folder beside an SQLite file.

    Roots that exist stay, such as those of an experiment that was given a folder of its own, and of
    a copied folder whose original is still there.
    """
    beside = database.parent / ARTIFACTS_FOLDER
    if not database.is_file() or not beside.is_dir():
        return
    try:
        with closing(sqlite3.connect(database, timeout=_PATIENCE_SECONDS)) as connection:
            for root in _lost_roots(connection, beside):
                with connection:
                    _replace_root(connection, root, artifact_location(beside))
                logger.warning(
                    "%s named artifacts in %s, which is gone; it now names those in %s",
                    database,
                    local_path(root),
                    beside,
                )
    except sqlite3.Error as error:
        logger.warning(
            "%s names artifacts in a folder that is gone, and cannot be changed: %s",
            database,
            one_line(error),
        )


def _lost_roots(connection: sqlite3.Connection, beside: Path) -> list[str]:
    """Lists the roots of experiments that lay beside the file before it was moved."""
    if not _has_column(connection, "experiments", "artifact_location"):
        return []
    rows = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    return [
        location.rstrip("/")
        for (location,) in rows
        if location and _was_beside(location) and local_path(location) != beside
    ]


def _was_beside(location: str) -> bool:
    path = local_path(location)
    return path is not None and path.name == ARTIFACTS_FOLDER and not path.exists()


def _replace_root(connection: sqlite3.Connection, root: str, new_root: str) -> None:
    for table, column in _COLUMNS:
        if _has_column(connection, table, column):
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                (new_root, len(root) + 1, root, len(root) + 1, f"{root}/"),
            )


def _has_column(connection: sqlite3.Connection, table: str, column: str) -> bool:
    """Whether a table has a column: versions of MLflow differ."""
    columns = connection.execute("SELECT name FROM pragma_table_info(?)", (table,)).fetchall()
    return (column,) in columns

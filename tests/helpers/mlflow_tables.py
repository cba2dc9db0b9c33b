"""New SQLite files of MLflow whose tables are copied.

MLflow takes each new file through all its migrations, which is a second of work, and hundreds of
tests begin with a new file. Programs that tests start still migrate.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy
from mlflow.store.db import utils

_FOLDER = TemporaryDirectory(prefix="mlflow-tables-")


def migrate_once() -> None:
    """Has MLflow migrate the first new file of this process alone, and copies it from then on."""
    migrate, migrated = utils._initialize_tables, Path(_FOLDER.name, "migrated.db")

    def initialize(engine: sqlalchemy.Engine) -> None:
        if engine.dialect.name != "sqlite" or sqlalchemy.inspect(engine).get_table_names():
            migrate(engine)
        elif migrated.exists():
            _copy(migrated, Path(str(engine.url.database)))
        else:
            migrate(engine)
            _copy(Path(str(engine.url.database)), migrated)

    utils._initialize_tables = initialize


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)

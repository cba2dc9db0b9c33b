"""What MLflow itself opens an SQLite file by, wherever XKD is installed.

A renamed home is then found by any program, such as `mlflow ui` or `mlflow.pyfunc.load_model`, and
not by XKD's commands alone. MLflow loads this module while it is imported itself, so nothing of
MLflow may be imported here but within the functions.

Source: MLflow plugins, groups `mlflow.tracking_store` and `mlflow.model_registry_store`.
"""

from typing import Any

from pipelines.tracking.moved_artifacts import mend_moved_artifacts
from pipelines.tracking.sqlite import sqlite_file


def tracking_store(store_uri: str, artifact_uri: str | None = None) -> Any:
    """Opens the runs of an SQLite file whose artifacts may have moved."""
    from mlflow.tracking._tracking_service.utils import _get_sqlalchemy_store

    _mend(store_uri)
    return _get_sqlalchemy_store(store_uri, artifact_uri)


def registry_store(store_uri: str) -> Any:
    """Opens the models of an SQLite file whose artifacts may have moved."""
    from mlflow.tracking._model_registry.utils import _get_sqlalchemy_store

    _mend(store_uri)
    return _get_sqlalchemy_store(store_uri)


def _mend(store_uri: str) -> None:
    database = sqlite_file(store_uri)
    if database is not None:
        mend_moved_artifacts(database)

"""A run is found in a folder whose name MLflow and SQLAlchemy would decode."""

from urllib.parse import quote

from pipelines.tracking.runs import RunRef, open_run
from pipelines.tracking.sqlite import sqlite_file
from tests.helpers.tracking import config_at, forget_artifacts


def test_an_encoded_address_and_its_artifacts_lie_in_the_folder_that_it_names(tmp_path):
    home = tmp_path / "a%20b?"
    uri = f"sqlite:///{quote(str(home))}/mlflow.db"
    assert sqlite_file(uri) == home / "mlflow.db"
    config = config_at(home)
    config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": uri})})
    run: RunRef = open_run(config, "ingest", "test")
    forget_artifacts()
    (file,) = run.client().list_artifacts(run.run_id, "")
    (kept,) = home.rglob(file.path)
    assert kept.is_relative_to(home / "mlartifacts")
    assert (home / "mlflow.db").is_file()

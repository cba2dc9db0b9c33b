"""The artifacts of an SQLite file are found again after its folder has moved."""

import logging
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from pipelines.config.base import TrackingSettings
from pipelines.tracking.moved_artifacts import mend_moved_artifacts
from pipelines.tracking.server import check_tracking
from tests.helpers.tracking import forget_artifacts, run_at


def artifact_of(run):
    forget_artifacts()
    (file,) = run.client().list_artifacts(run.run_id, "")
    return Path(run.client().download_artifacts(run.run_id, file.path)).read_text()


def test_a_run_in_a_renamed_home_keeps_its_artifacts_and_goes_on(tmp_path):
    name = "50% é #1 a'b&c;d=e+f@g:[h]*"
    old, new = tmp_path / name, tmp_path / f"{name}-moved"
    old.mkdir()
    run = run_at(old)
    before = artifact_of(run)
    old.rename(new)
    again = run_at(new, run_id=run.run_id)
    assert again.run_id == run.run_id
    assert artifact_of(again).replace(str(new), str(old)) == before
    other = run_at(new)
    assert other.experiment_id == run.experiment_id
    assert not old.exists()
    assert {path.name for path in tmp_path.iterdir()} == {new.name}
    assert (new / "mlartifacts").is_dir()


def test_the_checks_before_a_job_find_moved_artifacts(tmp_path, caplog):
    old, new = tmp_path / "a", tmp_path / "b"
    old.mkdir()
    run = run_at(old)
    before = artifact_of(run)
    old.rename(new)
    uri = f"sqlite:///{new}/mlflow.db"
    for _ in range(2):
        check_tracking(TrackingSettings(uri=uri))
    assert artifact_of(replace(run, uri=uri)) == before
    (told,) = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert f"in {old}/mlartifacts, which is gone" in told


def test_a_home_that_moved_twice_and_back_is_found(tmp_path):
    homes = [tmp_path / name for name in ("a", "ab", "a")]
    homes[0].mkdir()
    run = run_at(homes[0])
    for before, after in pairwise(homes):
        before.rename(after)
        assert artifact_of(run_at(after, run_id=run.run_id))


def test_roots_that_exist_or_are_elsewhere_stay(tmp_path):
    home, disk = tmp_path / "home", tmp_path / "disk/mlartifacts"
    home.mkdir()
    run = run_at(home)
    client = run.client()
    disk.mkdir(parents=True)
    locations = [f"{disk}", "s3://bucket/mlartifacts", "mlflow-artifacts:/0", f"{tmp_path}/gone"]
    kept = [client.create_experiment(uri, artifact_location=uri) for uri in locations]
    mend_moved_artifacts(home / "mlflow.db")
    there = [client.get_experiment(number).artifact_location for number in kept]
    assert there == locations


def test_a_file_that_cannot_be_changed_is_a_warning(tmp_path, caplog):
    home = tmp_path / "home"
    (home / "mlartifacts").mkdir(parents=True)
    (home / "mlflow.db").write_text("this is no database, and longer than its header is")
    mend_moved_artifacts(home / "mlflow.db")
    assert "cannot be changed" in caplog.text


def test_a_database_of_something_else_stays(tmp_path):
    (tmp_path / "mlartifacts").mkdir()
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        connection.execute("CREATE TABLE runs (artifact_uri TEXT)")
        connection.execute("INSERT INTO runs VALUES ('/gone/mlartifacts/1')")
        connection.commit()
        mend_moved_artifacts(tmp_path / "mlflow.db")
        assert connection.execute("SELECT * FROM runs").fetchall() == [("/gone/mlartifacts/1",)]


def test_a_program_with_mlflow_alone_finds_a_renamed_home(tmp_path):
    old, new = tmp_path / "a", tmp_path / "b"
    old.mkdir()
    run = run_at(old)
    before = artifact_of(run)
    old.rename(new)
    program = (
        "import mlflow, sys; mlflow.set_tracking_uri(sys.argv[1]);"
        "run = {'run_id': sys.argv[2]}; (file,) = mlflow.artifacts.list_artifacts(**run);"
        "print(open(mlflow.artifacts.download_artifacts(**run, artifact_path=file.path)).read())"
    )
    command = [sys.executable, "-P", "-c", program, f"sqlite:///{new}/mlflow.db", run.run_id]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == before.strip(), done.stderr
    assert f"in {old}/mlartifacts, which is gone" in done.stderr

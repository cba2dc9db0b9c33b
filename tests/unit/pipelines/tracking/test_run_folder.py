"""A run's folder remembers what the run began with and is used by one process at a time."""

import json
from contextlib import ExitStack

import pytest

from pipelines.errors import UserError
from pipelines.tracking.run_folder import RUN_FILE, RunFolder
from tests.helpers.tracking import config_at


def test_a_run_continues_in_its_own_mlflow_run_and_keeps_what_it_began_with(tmp_path):
    folder = RunFolder(tmp_path / "runs/one")
    assert (folder.began_with, folder.run_id) == ({}, "")
    config = config_at(tmp_path)
    with folder.locked():
        first = folder.open_run(config, "ingest", "one", keep={"config": {"labels": "auto"}})
    assert json.loads((folder.path / RUN_FILE).read_text()) == {
        "run_id": first.run_id,
        "config": {"labels": "auto"},
    }
    again = RunFolder(folder.path)
    assert again.began_with["config"] == {"labels": "auto"}
    assert again.open_run(config, "ingest", "one", run_id="0" * 32) == first


def test_a_folder_that_names_no_run_continues_the_given_one(tmp_path):
    config = config_at(tmp_path)
    folders = [RunFolder(tmp_path / name) for name in ("one", "two")]
    for folder in folders:
        folder.path.mkdir()
    first = folders[0].open_run(config, "ingest", "one")
    assert folders[1].open_run(config, "ingest", "two", run_id=first.run_id) == first


def test_a_second_process_is_refused_by_name(tmp_path):
    folder = RunFolder(tmp_path / "one")
    with ExitStack() as stack:
        stack.enter_context(folder.locked())
        with pytest.raises(UserError, match=rf"^sweep \({folder.path}\) is being written by"):
            stack.enter_context(folder.locked("sweep"))
    with folder.locked():
        assert folder.path.is_dir()


def test_a_run_in_a_moved_home_began_with_what_is_there_now(tmp_path):
    home, moved, media = tmp_path / "home", tmp_path / "moved", tmp_path / "media"
    folder = home / "runs/one/pretrain/one"
    for path in (folder, home / "runs/one/clips", media):
        path.mkdir(parents=True)
    settings = {
        "name": "one",
        "output": str(folder.parent),
        "dataset": str(home / "runs/one/clips"),
        "resume": str(home / "runs/gone"),
        "health": {"knn": {"dataset": str(media)}},
        "seed": 3,
    }
    (folder / RUN_FILE).write_text(json.dumps({"run_id": "a", "config": settings}))
    assert RunFolder(folder).began_with["config"] == settings
    home.rename(moved)
    there = RunFolder(moved / folder.relative_to(home)).began_with["config"]
    assert there == settings | {
        "output": str(moved / "runs/one/pretrain"),
        "dataset": str(moved / "runs/one/clips"),
    }

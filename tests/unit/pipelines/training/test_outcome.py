"""A completed training needs no worker, one that has something to do does."""

import pytest

from pipelines.tracking.run_folder import RunFolder
from pipelines.tracking.runs import close_run
from pipelines.tracking.tracker import UNSENT_FILE
from pipelines.training.outcome import completed_outcome
from tests.helpers.training import folder_of, leave_checkpoint, tiny_config


@pytest.fixture
def finished(tmp_path):
    """A run as a training of 60 steps leaves it, and its MLflow run."""
    config = tiny_config(tmp_path, tmp_path / "clips")
    folder = RunFolder(folder_of(config))
    folder.path.mkdir(parents=True)
    run = folder.open_run(config, "pretrain", config.name)
    close_run(run, "FINISHED")
    return config, folder, run


def test_all_steps_saved_and_all_metrics_sent_is_complete(finished):
    config, folder, run = finished
    leave_checkpoint(config, run_id=run.run_id, next_step=60)
    outcome = completed_outcome(folder, run.uri)
    assert (outcome.first_step, outcome.next_step, outcome.total_steps) == (60, 60, 60)


def test_steps_or_metrics_that_are_left_need_a_worker(finished, tmp_path):
    config, folder, run = finished
    assert completed_outcome(folder, run.uri) is None
    leave_checkpoint(config, run_id=run.run_id, next_step=59)
    assert completed_outcome(folder, run.uri) is None
    leave_checkpoint(config, run_id=run.run_id, next_step=60)
    (folder.path / UNSENT_FILE).touch()
    assert completed_outcome(folder, run.uri) is None
    (folder.path / UNSENT_FILE).unlink()
    # A driver that was killed before it had sent everything leaves the run as it was.
    run.client().update_run(run.run_id, status="RUNNING")
    assert completed_outcome(folder, run.uri) is None
    close_run(run, "FINISHED")
    assert completed_outcome(folder, run.uri) is not None
    run.client().delete_run(run.run_id)
    assert completed_outcome(folder, run.uri) is None
    assert completed_outcome(folder, f"sqlite:///{tmp_path}/another.db") is None


def test_the_checkpoint_of_another_run_is_not_its_end(finished):
    config, folder, run = finished
    leave_checkpoint(config, run_id="another", next_step=60)
    assert completed_outcome(folder, run.uri) is None

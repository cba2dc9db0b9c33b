"""The main job is refused where another one is at it."""

from pathlib import Path

import pytest

from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from pipelines.files import locked
from pipelines.tracking.run_folder import LOCK_FILE
from ray_jobs.cli.settings import load_settings
from ray_jobs.run import folder_of, plan, work

SMOKE = Path(__file__).resolve().parents[3] / "conf" / "run" / "smoke.yaml"


def test_a_second_run_of_that_name_is_refused(tmp_path):
    config = load_settings(RunConfig, SMOKE, [f"output={tmp_path}"])
    folder_of(config).mkdir()
    with (
        locked(folder_of(config) / LOCK_FILE, "the first"),
        pytest.raises(UserError, match=r"run \(.*/smoke\) is being written by process"),
    ):
        work(config)


def test_weights_that_do_not_exist_are_found_before_anything_is_ingested(tmp_path):
    given = [f"output={tmp_path}", f"pretrain.init={tmp_path}/none"]
    config = load_settings(RunConfig, SMOKE, given)
    mistakes = plan(config).mistakes
    assert f"init: checkpoint ({tmp_path}/none) does not exist" in mistakes

"""`python -m ray_jobs.dataset` refuses what is no dataset and writes its page."""

import shutil

import pyarrow.parquet as pq
import pytest
import ray

from ray_jobs.cli.job import run_job
from ray_jobs.dataset import JOB
from tests.helpers.reviewed import write_reviewed

pytestmark = pytest.mark.ray


def test_a_folder_that_is_no_dataset_is_refused(tmp_path, capsys):
    assert run_job(JOB, [str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"dataset: dataset ({tmp_path}) is no clip dataset: it has no manifest.json\n"
    )
    assert run_job(JOB, [str(tmp_path), "max_shwn=3"]) == 2
    assert "did you mean max_shown?" in capsys.readouterr().err


@pytest.mark.slow
def test_the_job_writes_the_page_into_the_dataset(tmp_path, capsys):
    ray.shutdown()
    shutil.copytree(write_reviewed(tmp_path / "made").path, tmp_path / "clips")
    assert run_job(JOB, [str(tmp_path / "clips")]) == 0
    assert f"page: {tmp_path}/clips/page/dataset.html" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "clips/clips", columns=["clip_id"]).num_rows == 10

"""A GPU that is not there is told before work starts."""

from pathlib import Path

import pytest
import torch

from pipelines.config.base import JobConfig
from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from ray_jobs.cli.checks import check_gpus, gpu_mistakes
from ray_jobs.cli.settings import load_settings
from ray_jobs.run import plan

SMOKE = Path(__file__).resolve().parents[3] / "conf" / "run" / "smoke.yaml"
NO_GPU = pytest.mark.skipif(torch.cuda.device_count() > 0, reason="this machine has a GPU")


@NO_GPU
def test_only_what_wants_a_gpu_of_this_machine_is_told(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    wanted = {"pretrain.use_gpu": False, "evaluate.use_gpu": True}
    (mistake,) = gpu_mistakes(JobConfig(), wanted)
    assert mistake == "evaluate.use_gpu (True) needs a GPU, but this machine has none"
    cluster = JobConfig.model_validate({"ray": {"address": "ray://elsewhere:10001"}})
    assert gpu_mistakes(cluster, wanted) == ()


@NO_GPU
def test_the_main_job_tells_it_before_it_ingests(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = load_settings(RunConfig, SMOKE, [f"output={tmp_path}", "evaluate.use_gpu=true"])
    assert [text for text in plan(config).mistakes if "GPU" in text] == [
        "evaluate.use_gpu (True) needs a GPU, but this machine has none"
    ]


@NO_GPU
@pytest.mark.ray
def test_a_gpu_that_no_node_has_is_told(local_ray):
    check_gpus({"use_gpu": False}, None)
    with pytest.raises(UserError, match=r"evaluate.use_gpu \(True\) needs a GPU, but no node"):
        check_gpus({"pretrain.use_gpu": False, "evaluate.use_gpu": True}, 0.1)

"""Trainings that are made to collapse are named within 100 steps, healthy ones never are in 200.

The smoke recipe on its clips, step by step in this process. README, Health, says the same.
"""

import math
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.config.pretrain import PretrainConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.training.feed import make_feed
from ray_jobs.cli.settings import load_settings
from xkd_core.health import CollapseWatch, measure_health
from xkd_core.losses import initial_centers
from xkd_core.optim import build_optimizer
from xkd_core.train_step import TrainState, train_step
from xkd_core.views.log_mel import LogMel
from xkd_core.views.parameters import draw_view_parameters
from xkd_core.views.views import make_views
from xkd_core.xkd import build_xkd

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[4]
COLLAPSED_STEPS = 100
HEALTHY_STEPS = 200


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke") / "clips"
    command = [sys.executable, "-m", "ray_jobs.ingest", "conf/ingest/smoke.yaml"]
    outside = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "XKD_HOME")}
    tracking = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder.parent}/mlflow.db"}
    subprocess.run(
        [*command, f"output={folder}"], cwd=REPOSITORY, env=outside | tracking, check=True
    )
    return folder


def watched(clips, changes, num_steps, *, is_one_clip=False):
    """The watch after each record of the first steps of a training."""
    recipe = REPOSITORY / "conf/pretrain/smoke.yaml"
    config = load_settings(PretrainConfig, recipe, [*changes, f"dataset={clips}"])
    feed = make_feed(config, ClipDataset.open(str(clips)), rank=0, world_size=1)
    torch.manual_seed(config.seed)
    model = build_xkd(config.model)
    centers = initial_centers(config.model.head.output_width)
    state = TrainState(model, model, build_optimizer(model, config.optimizer), centers)
    log_mel, watch = LogMel(config.model.audio), CollapseWatch()
    with closing(feed):
        batches = feed.batches(0)
        for step in range(num_steps):
            batch = next(batches)
            if is_one_clip:
                alike = (part[:1].expand_as(part).clone() for part in batch.clips)
                batch = replace(batch, clips=type(batch.clips)(*alike))
            parameters = draw_view_parameters(batch.clip_ids, batch.epochs, config.seed, config)
            is_record = step % config.log_every == 0 or step == num_steps - 1
            metrics = train_step(
                state,
                make_views(batch.clips, parameters, config, log_mel),
                config,
                total_steps=math.ceil(config.epochs * feed.steps_per_epoch),
                steps_per_epoch=feed.steps_per_epoch,
                measure=measure_health if is_record else None,
            )
            if is_record:
                watch.see({name: float(value) for name, value in metrics.items()})
                yield watch


NO_NORM = ["model.head.normalize_output=false"]
NO_CENTERING = ["objective.center_momentum=1"]
WARM = [
    f"objective.{m}_teacher_temperature.{e}=1" for m in ("video", "audio") for e in ("start", "end")
]
COLD = [f"objective.{modality}_student_temperature=0.1" for modality in ("video", "audio")]
NO_ALIGNMENT = ["objective.alignment_weight=0"]


@pytest.mark.parametrize(
    ("changes", "is_one_clip"),
    [
        pytest.param(NO_NORM, False, id="no output norm"),
        pytest.param(NO_CENTERING, False, id="no centering"),
        pytest.param(WARM, False, id="teachers too warm"),
        pytest.param(COLD, False, id="students too cold"),
        pytest.param(NO_ALIGNMENT, False, id="no alignment"),
        pytest.param(NO_ALIGNMENT, True, id="no alignment, one clip"),
    ],
)
def test_a_collapse_is_named(clips, changes, is_one_clip):
    watches = watched(clips, changes, COLLAPSED_STEPS, is_one_clip=is_one_clip)
    assert any(watch.signs for watch in watches)


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_is_never_called_collapsed(clips, seed):
    for watch in watched(clips, [f"seed={seed}"], HEALTHY_STEPS):
        assert watch.signs == []

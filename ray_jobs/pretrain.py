"""`python -m ray_jobs.pretrain CONFIG.yaml`: a clip dataset becomes encoders."""

import math
import sys
from pathlib import Path

from pipelines.config.pretrain import PretrainConfig
from pipelines.tracking.tracker import RunRef
from pipelines.training.checks import check_pretrain
from pipelines.training.pretrain import PretrainResult, pretrain
from ray_jobs.cli.checks import surroundings
from ray_jobs.cli.cluster import connected
from ray_jobs.cli.console import StageProgress
from ray_jobs.cli.main import Job, Plan, run_job


def plan(config: PretrainConfig) -> Plan:
    """What pretraining reads and writes."""
    folder = str(Path(config.output) / config.name)
    labelled = config.health.knn and config.health.knn.dataset
    return Plan(
        reads=tuple(place for place in (config.dataset, config.resume, labelled) if place),
        writes=(folder,),
        mistakes=(*check_pretrain(config), *surroundings(config, folder)),
    )


def pretrain_stage(config: PretrainConfig, parent: RunRef | None = None) -> PretrainResult:
    """Trains with progress."""
    progress = StageProgress("pretrain", "steps")
    result = pretrain(config, on_progress=progress, parent=parent)
    text = f"{result.total_steps} steps"
    if result.first_step >= result.total_steps:
        text += ", all of them done before"
    elif result.first_step:
        text += f", {result.first_step} of them done before"
    if not math.isnan(result.clips_per_second):
        text += f", {result.clips_per_second:.1f} clips/s"
    progress.finish(text)
    return result


def work(config: PretrainConfig) -> None:
    """Trains and says where the last checkpoint is."""
    with connected(config.ray):
        result = pretrain_stage(config)
    print(f"checkpoint: {result.checkpoint}")


JOB = Job(
    name="pretrain",
    about="A clip dataset becomes encoders: XKD on Ray Train.",
    schema=PretrainConfig,
    plan=plan,
    work=work,
    how_to_go_on="Checkpoints stay; the same command goes on from the last one.",
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))

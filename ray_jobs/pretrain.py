"""`python -m ray_jobs.pretrain CONFIG.yaml`: trains encoders on a clip dataset."""

import math
import sys

from pipelines.config.base import locations_of
from pipelines.config.pretrain import PretrainConfig
from pipelines.quantities import counted
from pipelines.storage import path_of
from pipelines.tracking.runs import RunRef
from pipelines.training.checks import check_pretrain, training_length
from pipelines.training.initial_weights import init_notes
from pipelines.training.pretrain import PretrainResult, pretrain
from ray_jobs.cli.checks import environment_mistakes
from ray_jobs.cli.cluster import connected
from ray_jobs.cli.console import StageProgress
from ray_jobs.cli.job import Job, JobPlan, run_job
from ray_jobs.cli.jobs import JOBS


def plan(config: PretrainConfig) -> JobPlan:
    """Returns what the job reads and writes."""
    folder = str(path_of(config.output) / config.name)
    labelled = config.health.knn.dataset if config.health.knn else None
    weights = tuple(location for _, location in config.init.locations()) if config.init else ()
    reads = (
        *locations_of(config.dataset),
        config.resume,
        *locations_of(labelled or ()),
        *weights,
    )
    return JobPlan(
        reads=tuple(location for location in reads if location),
        writes=(folder,),
        mistakes=(*check_pretrain(config), *environment_mistakes(config, folder)),
        notes=lambda: [*init_notes(config), *training_length(config)],
    )


def pretrain_stage(config: PretrainConfig, parent: RunRef | None = None) -> PretrainResult:
    """Trains with progress."""
    progress = StageProgress("pretrain", "steps")
    result = pretrain(config, on_progress=progress, parent=parent)
    text = counted(result.total_steps, "step")
    if result.first_step >= result.total_steps:
        text += ", all of them done before"
    elif result.first_step:
        text += f", {result.first_step:,} of them done before"
    if not math.isnan(result.clips_per_second):
        text += f", {result.clips_per_second:.1f} clips/s"
    if begun := ", ".join(one["source"] for one in result.began_from.values()):
        text += f"; began from {begun}"
    progress.finish(text)
    return result


def work(config: PretrainConfig) -> None:
    """Trains and prints where the last checkpoint is."""
    with connected(config.ray):
        result = pretrain_stage(config)
    print(f"checkpoint: {result.checkpoint}")


JOB = Job(
    summary=JOBS["pretrain"],
    schema=PretrainConfig,
    plan=plan,
    work=work,
    how_to_go_on="Checkpoints are kept; the same command continues from the last one.",
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))

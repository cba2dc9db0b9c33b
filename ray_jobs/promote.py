"""`python -m ray_jobs.promote CONFIG.yaml`: registers the encoders of a checkpoint."""

import sys
from collections.abc import Sequence

from pipelines.config.promote import PromoteConfig
from pipelines.models.checkpoints import find_checkpoint
from pipelines.registry.preview import preview
from pipelines.registry.promote import (
    Registered,
    check_metric,
    checkpoint_outcomes,
    checkpoint_scores,
    promote,
)
from pipelines.registry.signing import check_keys
from pipelines.tracking.runs import RunRef, open_run, tracked
from ray_jobs.cli.checks import environment_mistakes, messages
from ray_jobs.cli.console import StageProgress
from ray_jobs.cli.job import Job, JobPlan, run_job
from ray_jobs.cli.jobs import JOBS


def plan(config: PromoteConfig) -> JobPlan:
    """Returns what the job reads and writes."""
    names = tuple(f"models:/{config.model_prefix}-{m}@{config.alias}" for m in config.modalities)
    mistakes = messages(
        lambda: find_checkpoint(config.checkpoint),
        lambda: checkpoint_scores(config),
        lambda: checkpoint_outcomes(config),
        check_keys,
    ) or messages(lambda: check_metric(config))
    mistakes = (*mistakes, *environment_mistakes(config))
    return JobPlan(
        reads=tuple(location for location in (config.checkpoint, config.scores) if location),
        writes=names,
        mistakes=mistakes,
        notes=lambda: () if mistakes else preview(config),
    )


def promote_stage(config: PromoteConfig, parent: RunRef | None = None) -> Sequence[Registered]:
    """Registers with progress."""
    progress = StageProgress("register", "models")
    scores = checkpoint_scores(config)
    with tracked(open_run(config, "promote", config.name, parent=parent)) as run:
        registered = promote(
            find_checkpoint(config.checkpoint), scores, config, run, checkpoint_outcomes(config)
        )
    progress.finish(", ".join(f"{model.name} version {model.version}" for model in registered))
    return registered


def registered_text(registered: Sequence[Registered]) -> str:
    """Formats one line for each version, with the reason why it has the alias or not."""
    return "\n".join(
        f"  {model.name} version {model.version}: {model.reason}" for model in registered
    )


def work(config: PromoteConfig) -> None:
    """Registers the encoders and prints which have the alias."""
    print(registered_text(promote_stage(config)))


JOB = Job(
    summary=JOBS["promote"],
    schema=PromoteConfig,
    plan=plan,
    work=work,
    uses_ray=False,
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))

"""`python -m ray_jobs.import_checkpoint FILE`: registers encoders of a published file."""

import sys

from pipelines.config.import_checkpoint import ImportConfig
from pipelines.registry.import_checkpoint import import_encoders, read_encoders
from pipelines.tracking.runs import open_run, tracked
from ray_jobs.cli.checks import environment_mistakes, messages
from ray_jobs.cli.console import StageProgress
from ray_jobs.cli.job import Job, JobPlan, run_job
from ray_jobs.cli.jobs import JOBS
from ray_jobs.promote import registered_text


def plan(config: ImportConfig) -> JobPlan:
    """Returns what the job reads and writes."""
    modalities = (config.modality,) if config.modality else ("video", "audio")
    writes: tuple[str, ...] = tuple(f"models:/{config.model_prefix}-{m}" for m in modalities)

    def check_file() -> None:
        nonlocal writes
        found = [one.info.modality for one in read_encoders(config)]
        writes = tuple(f"models:/{config.model_prefix}-{modality}" for modality in found)

    mistakes = (*messages(check_file), *environment_mistakes(config))
    return JobPlan(reads=(config.file,), writes=writes, mistakes=mistakes)


def work(config: ImportConfig) -> None:
    """Registers the encoders and prints the versions."""
    progress = StageProgress("import", "models")
    with tracked(open_run(config, "import-checkpoint", config.name)) as run:
        registered = import_encoders(config, run)
    progress.finish(", ".join(f"{model.name} version {model.version}" for model in registered))
    print(registered_text(registered))


JOB = Job(
    summary=JOBS["import-checkpoint"],
    schema=ImportConfig,
    plan=plan,
    work=work,
    uses_ray=False,
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))

"""`python -m ray_jobs.import_checkpoint FILE`: a published encoder's file enters the registry."""

import sys

from pipelines.config.import_checkpoint import ImportConfig
from pipelines.registry.import_checkpoint import import_encoders, read_encoders
from pipelines.tracking.tracker import open_run, tracked
from ray_jobs.cli.checks import messages, surroundings
from ray_jobs.cli.console import StageProgress
from ray_jobs.cli.main import Job, Plan, run_job
from ray_jobs.promote import in_words


def plan(config: ImportConfig) -> Plan:
    """What the import reads and writes."""
    modalities = (config.modality,) if config.modality else ("video", "audio")
    writes: tuple[str, ...] = tuple(f"models:/{config.model_prefix}-{m}" for m in modalities)

    def check_file() -> None:
        nonlocal writes
        found = [one.info.modality for one in read_encoders(config)]
        writes = tuple(f"models:/{config.model_prefix}-{modality}" for modality in found)

    mistakes = (*messages(check_file), *surroundings(config))
    return Plan(reads=(config.file,), writes=writes, mistakes=mistakes)


def work(config: ImportConfig) -> None:
    """Registers and says what came out."""
    progress = StageProgress("import", "models")
    with tracked(open_run(config, "import-checkpoint", config.name)) as run:
        registered = import_encoders(config, run)
    progress.finish(", ".join(f"{model.name} version {model.version}" for model in registered))
    print(in_words(registered))


JOB = Job(
    name="import-checkpoint",
    about="The encoders of a file of the published method enter the registry.",
    schema=ImportConfig,
    plan=plan,
    work=work,
    place="file",
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))

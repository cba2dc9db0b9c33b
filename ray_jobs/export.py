"""`python -m ray_jobs.export DATASET FOLDER`: a clip dataset in a format of other tools."""

import sys

from pipelines.config.export import ExportConfig
from pipelines.dataset.webdataset import check_export, export_webdataset
from pipelines.files import check_writable
from pipelines.quantities import counted
from ray_jobs.cli.checks import messages
from ray_jobs.cli.console import StageProgress
from ray_jobs.cli.job import Job, JobPlan, run_job
from ray_jobs.cli.jobs import JOBS


def plan(config: ExportConfig) -> JobPlan:
    """What exporting reads and writes."""
    mistakes = messages(lambda: check_export(config), lambda: check_writable(config.output))
    return JobPlan(reads=(config.dataset,), writes=(config.output,), mistakes=mistakes)


def work(config: ExportConfig) -> None:
    """Exports and says what was written."""
    progress = StageProgress("export", "clips")
    done = export_webdataset(config, progress)
    progress.finish(config.output)
    print(f"{counted(done.clips, 'clip')} in {counted(len(done.shards), 'shard')}: {config.output}")


JOB = Job(
    summary=JOBS["export"],
    schema=ExportConfig,
    plan=plan,
    work=work,
    how_to_go_on="Empty the output and run the same command again.",
    uses_ray=False,
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))

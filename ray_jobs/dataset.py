"""`python -m ray_jobs.dataset FOLDER`: a page about a clip dataset, and lists to exclude."""

import sys

from pipelines.config.dataset import DatasetConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.review import review
from pipelines.files import check_writable
from pipelines.report.dataset_page import review_text, write_dataset_page
from pipelines.storage import AnyPath, path_of
from ray_jobs.cli.checks import messages
from ray_jobs.cli.cluster import check_ray, connected
from ray_jobs.cli.console import StageProgress
from ray_jobs.cli.job import Job, JobPlan, run_job
from ray_jobs.cli.jobs import JOBS


def folder_of(config: DatasetConfig) -> AnyPath:
    """Returns the folder of the page and the lists."""
    return path_of(config.output or f"{config.dataset}/page")


def plan(config: DatasetConfig) -> JobPlan:
    """Returns what the job reads and writes."""
    locations = (config.dataset, *config.against)
    return JobPlan(
        reads=locations,
        writes=(str(folder_of(config)),),
        mistakes=messages(
            *(lambda location=location: ClipDataset.open(location) for location in locations),
            lambda: check_ray(config.ray),
            lambda: check_writable(str(folder_of(config))),
        ),
    )


def work(config: DatasetConfig) -> None:
    """Reviews the dataset and prints the findings."""
    dataset = ClipDataset.open(config.dataset)
    progress = StageProgress("dataset", "clips")
    with connected(config.ray):
        found = review(dataset, config, progress)
    page = write_dataset_page(folder_of(config), found)
    progress.finish(config.dataset)
    print(review_text(found))
    print(f"page: {page}")


JOB = Job(
    summary=JOBS["dataset"],
    schema=DatasetConfig,
    plan=plan,
    work=work,
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))

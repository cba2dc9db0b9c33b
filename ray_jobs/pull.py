"""`python -m ray_jobs.pull NAME@ALIAS FOLDER`: a registered model becomes a folder."""

import sys
from pathlib import Path

from pipelines.config.pull import PullConfig
from pipelines.registry.pull import check_output, pull
from pipelines.registry.signing import check_keys
from pipelines.registry.uri import resolve_model
from ray_jobs.cli.checks import messages
from ray_jobs.cli.console import StageProgress
from ray_jobs.cli.job import Job, JobPlan, run_job
from ray_jobs.cli.jobs import JOBS


def plan(config: PullConfig) -> JobPlan:
    """What pulling reads and writes."""
    mistakes = messages(
        lambda: resolve_model(config.uri, config.tracking),
        lambda: check_output(Path(config.output)),
        check_keys,
    )
    return JobPlan(reads=(config.uri,), writes=(config.output,), mistakes=mistakes)


def work(config: PullConfig) -> None:
    """Pulls and says how the folder is used."""
    progress = StageProgress("pull", "models")
    version = pull(config)
    progress.finish(version.uri)
    (code,) = (Path(config.output) / "code").glob("xkd_*")
    print(f"{version.uri} is in {config.output}; README.md there says how to load it")
    print(f"  torch.nn.Module: sys.path.append({str(code.parent)!r});", end=" ")
    print(f"from {code.name} import load_module; encoder = load_module()")


JOB = Job(
    summary=JOBS["pull"],
    schema=PullConfig,
    plan=plan,
    work=work,
    uses_ray=False,
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))

"""`python -m ray_jobs.demote CONFIG.yaml`: an alias goes back to an earlier version."""

import sys

from pipelines.config.promote import DemoteConfig
from pipelines.registry.demote import demote, plan_demotion
from pipelines.tracking.runs import open_run, tracked
from ray_jobs.cli.checks import environment_mistakes, messages
from ray_jobs.cli.job import Job, JobPlan, run_job
from ray_jobs.cli.jobs import JOBS


def plan(config: DemoteConfig) -> JobPlan:
    """What the demotion reads and writes."""
    mistakes = messages(lambda: plan_demotion(config)) or environment_mistakes(config)
    uri = f"models:/{config.model}@{config.alias}"
    return JobPlan(
        reads=(uri,),
        writes=(uri,),
        mistakes=mistakes,
        notes=lambda: () if mistakes else (f"would move {plan_demotion(config).text}",),
    )


def work(config: DemoteConfig) -> None:
    """Moves the alias and says so."""
    with tracked(open_run(config, "demote", config.name)):
        print(f"moved {demote(config).text}")


JOB = Job(
    summary=JOBS["demote"],
    schema=DemoteConfig,
    plan=plan,
    work=work,
    uses_ray=False,
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))

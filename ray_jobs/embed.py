"""`python -m ray_jobs.embed CONFIG.yaml`: runs a registered model over media."""

import sys

from pipelines.config.embed import EmbedConfig
from pipelines.embed.embed import check_embed, embed
from pipelines.quantities import counted
from pipelines.tracking.runs import open_run, tracked
from ray_jobs.cli.checks import decoder_mistakes, decoder_text, environment_mistakes
from ray_jobs.cli.cluster import connected
from ray_jobs.cli.console import StageProgress
from ray_jobs.cli.job import Job, JobPlan, run_job
from ray_jobs.cli.jobs import JOBS


def plan(config: EmbedConfig) -> JobPlan:
    """Returns what the job reads and writes."""
    # The look-up of the model would report an unreachable MLflow a second time.
    around = environment_mistakes(config, config.output)
    around += decoder_mistakes(config, config.decoder)
    return JobPlan(
        reads=(config.model, config.input),
        writes=(config.output,),
        mistakes=around or tuple(check_embed(config)),
    )


def work(config: EmbedConfig) -> None:
    """Embeds and prints where the embeddings are."""
    print(decoder_text(config))
    progress = StageProgress("embed", "sources")
    with connected(config.ray), tracked(open_run(config, "embed", config.name)) as run:
        summary = embed(config, on_progress=progress)
        client = run.client()
        for name in ("sources", "accepted", "rejected", "clips"):
            client.log_metric(run.run_id, f"embed/{name}", getattr(summary, name))
    progress.finish(
        f"{counted(summary.clips, 'embedding')} of {counted(summary.accepted, 'source')}, "
        f"{summary.new_clips:,} new"
    )
    for reason, count in summary.rejects_by_reason.items():
        print(f"  rejected: {count:,} {reason}")
    print(f"embeddings: {config.output}")


JOB = Job(
    summary=JOBS["embed"],
    schema=EmbedConfig,
    plan=plan,
    work=work,
    how_to_go_on="Finished shards are kept; the same command does only what is missing.",
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))

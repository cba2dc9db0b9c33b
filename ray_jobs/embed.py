"""`python -m ray_jobs.embed CONFIG.yaml`: a registered model over any media becomes embeddings."""

import sys

from pipelines.config.embed import EmbedConfig
from pipelines.embed.embed import check_embed, embed
from pipelines.tracking.tracker import open_run, tracked
from ray_jobs.cli.checks import decoder_mistakes, decoder_text, surroundings
from ray_jobs.cli.cluster import connected
from ray_jobs.cli.console import StageProgress
from ray_jobs.cli.main import Job, Plan, run_job


def plan(config: EmbedConfig) -> Plan:
    """What embedding reads and writes."""
    # An MLflow that does not answer would be named by the model's look-up a second time.
    around = surroundings(config, config.output) + decoder_mistakes(config, config.decoder)
    return Plan(
        reads=(config.model, config.input),
        writes=(config.output,),
        mistakes=around or tuple(check_embed(config)),
    )


def work(config: EmbedConfig) -> None:
    """Embeds and says where the embeddings are."""
    print(decoder_text(config))
    progress = StageProgress("embed", "sources")
    with connected(config.ray), tracked(open_run(config, "embed", config.name)) as run:
        summary = embed(config, on_progress=progress)
        client = run.client()
        for name in ("sources", "accepted", "rejected", "clips"):
            client.log_metric(run.run_id, f"embed/{name}", getattr(summary, name))
    progress.finish(
        f"{summary.clips} embeddings of {summary.accepted} sources, {summary.new_clips} new"
    )
    for reason, count in summary.rejects_by_reason.items():
        print(f"  rejected: {count} {reason}")
    print(f"embeddings: {config.output}")


JOB = Job(
    name="embed",
    about="A registered model over any media becomes a Parquet of embeddings.",
    schema=EmbedConfig,
    plan=plan,
    work=work,
    how_to_go_on="Finished shards stay; the same command does only what is missing.",
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))

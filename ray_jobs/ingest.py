"""`python -m ray_jobs.ingest CONFIG.yaml`: turns media into a clip dataset."""

import sys
from dataclasses import asdict

from pipelines.config.ingest import IngestConfig, IngestSettings
from pipelines.ingest.ingest import check_ingest, ingest
from pipelines.ingest.summary import IngestSummary
from pipelines.quantities import counted
from pipelines.sources.synthetic_clips import make_clips
from pipelines.storage import AnyPath, path_of
from pipelines.tracking.runs import RunRef, log_dataset, open_run, tracked
from ray_jobs.cli.checks import decoder_mistakes, decoder_text, environment_mistakes, messages
from ray_jobs.cli.cluster import connected
from ray_jobs.cli.console import StageProgress
from ray_jobs.cli.job import Job, JobPlan, run_job
from ray_jobs.cli.jobs import JOBS


def plan(config: IngestConfig) -> JobPlan:
    """Returns what the job reads and writes."""
    source = config.input or str(synthetic_folder(config))
    mistakes = (
        *messages(lambda: check_ingest(config.input, config.output, config)),
        *decoder_mistakes(config, config.decoder),
    )
    return JobPlan(
        reads=(source,),
        writes=(config.output,) if config.input else (source, config.output),
        mistakes=(*mistakes, *environment_mistakes(config, config.output)),
    )


def synthetic_folder(config: IngestConfig) -> AnyPath:
    """Returns the folder of synthetic clips, beside the dataset."""
    return path_of(config.output).parent / "videos"


def work(config: IngestConfig) -> None:
    """Ingests the input, or synthetic clips if there is none."""
    with connected(config.ray):
        ingest_stage(config)


def ingest_stage(config: IngestConfig, parent: RunRef | None = None) -> IngestSummary:
    """Ingests in an MLflow run, with progress."""
    source = config.input
    if source is None:
        folder = synthetic_folder(config)
        progress = StageProgress("make", "clips")
        make_clips(folder, config.synthetic, lambda done, total: progress(done, total, ""))
        progress.finish(
            f"{counted(config.synthetic.num_clips, 'clip')} and 2 broken files in {folder}"
        )
        source = str(folder)
    print(decoder_text(config))
    progress = StageProgress("ingest", "sources")
    with tracked(open_run(config, "ingest", config.name, parent=parent)) as run:
        summary = ingest(source, config.output, settings_of(config), on_progress=progress)
        log_summary(run, config, summary)
    progress.finish(summary_text(summary))
    return summary


def settings_of(config: IngestConfig) -> IngestSettings:
    """Returns the settings that determine how sources become segments."""
    return IngestSettings.model_validate(
        config.model_dump(include=set(IngestSettings.model_fields))
    )


def log_summary(run: RunRef, config: IngestConfig, summary: IngestSummary) -> None:
    """Logs the counts and the dataset."""
    client = run.client()
    for name in ("sources", "accepted", "rejected", "clips"):
        client.log_metric(run.run_id, f"ingest/{name}", getattr(summary, name))
    for reason, count in summary.rejects_by_reason.items():
        client.log_metric(run.run_id, f"ingest/rejects/{reason}", count)
    for name, count in asdict(summary.flaws).items():
        client.log_metric(run.run_id, f"ingest/flaws/{name}", count)
    log_dataset(
        run,
        dataset_id=summary.dataset_id,
        path=config.output,
        num_clips=summary.clips,
        context="written",
    )


def summary_text(summary: IngestSummary) -> str:
    """Formats the counts, and one line for each note."""
    reasons = ", ".join(
        f"{count:,} {reason}" for reason, count in summary.rejects_by_reason.items()
    )
    text = (
        f"{counted(summary.clips, 'clip')} of {counted(summary.accepted, 'source')}, "
        f"{summary.new_clips:,} new; {counted(summary.sources, 'source')} = "
        f"{summary.accepted:,} accepted + {summary.rejected:,} rejected"
    )
    if reasons:
        text += f" ({reasons})"
    changes = {name: count for name, count in asdict(summary.changes).items() if count}
    if changes and summary.changes.new < summary.sources:
        text += f"; since the last run: {', '.join(f'{n:,} {name}' for name, n in changes.items())}"
    if summary.ignored:
        names = ", ".join(f"{count:,} {suffix}" for suffix, count in summary.ignored.items())
        text += f"; files that are not sources: {names}"
    return "\n  ".join([text, *summary.flaws.sentences(), *summary.notes])


def report(config: IngestConfig) -> None:
    """Ingests and prints where the dataset is."""
    work(config)
    print(f"clip dataset: {config.output}")


JOB = Job(
    summary=JOBS["ingest"],
    schema=IngestConfig,
    plan=plan,
    work=report,
    how_to_go_on="Finished shards are kept; the same command does only what is missing.",
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))

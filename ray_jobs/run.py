"""`python -m ray_jobs.run CONFIG.yaml`: the main job, from media to registered encoders.

The stages are ingest, pretrain, evaluate, promote and report. Those that log have MLflow runs under
one parent. The same command continues where an earlier one stopped.
"""

import sys
import time

from pipelines.config.evaluate import EvaluateConfig, OfficialSettings
from pipelines.config.ingest import IngestConfig
from pipelines.config.pretrain import PretrainConfig
from pipelines.config.promote import PromoteConfig
from pipelines.config.run import RunConfig
from pipelines.config.written import CONFIG_FILE
from pipelines.ingest.ingest import check_ingest
from pipelines.quantities import duration
from pipelines.report.run_report import RunRecord, write_run_report
from pipelines.storage import AnyPath, path_of
from pipelines.tracking.run_folder import RunFolder
from pipelines.tracking.runs import tracked
from pipelines.training.checks import run_mistakes
from pipelines.training.initial_weights import init_mistakes, init_notes
from ray_jobs.cli.checks import (
    check_gpus,
    decoder_mistakes,
    environment_mistakes,
    gpu_mistakes,
    messages,
)
from ray_jobs.cli.cluster import connected
from ray_jobs.cli.console import StageProgress
from ray_jobs.cli.job import Job, JobPlan, run_job
from ray_jobs.cli.jobs import JOBS
from ray_jobs.cli.own_media import arguments_for_media, begun_input
from ray_jobs.evaluate import evaluate_stage, print_marks, score_table
from ray_jobs.ingest import ingest_stage, summary_text, synthetic_folder
from ray_jobs.pretrain import pretrain_stage
from ray_jobs.promote import promote_stage, registered_text


def folder_of(config: RunConfig) -> AnyPath:
    """Returns the folder of everything that a run writes."""
    return path_of(config.output) / config.name


def ingest_config(config: RunConfig) -> IngestConfig:
    """Returns the settings of the first stage."""
    return IngestConfig(
        **config.ingest.model_dump(),
        input=config.input,
        output=str(folder_of(config) / "clips"),
        synthetic=config.synthetic,
        tracking=config.tracking,
        ray=config.ray,
    )


def pretrain_config(config: RunConfig) -> PretrainConfig:
    """Returns the settings of the second stage."""
    return PretrainConfig(
        **config.pretrain.model_dump(),
        name=config.name,
        dataset=str(folder_of(config) / "clips"),
        output=str(folder_of(config) / "pretrain"),
        tracking=config.tracking,
        ray=config.ray,
    )


def evaluate_config(config: RunConfig, checkpoint: AnyPath) -> EvaluateConfig:
    """Returns the settings of the third stage; scores of a published dataset count its split."""
    published = config.ingest.dataset
    return EvaluateConfig(
        **config.evaluate.model_dump(),
        official=OfficialSettings(dataset=published) if published else None,
        checkpoint=str(checkpoint),
        dataset=str(folder_of(config) / "clips"),
        output=str(folder_of(config) / "evaluate"),
        tracking=config.tracking,
        ray=config.ray,
    )


def promote_config(config: RunConfig, checkpoint: AnyPath, scores: AnyPath) -> PromoteConfig:
    """Returns the settings of the fourth stage."""
    return PromoteConfig(
        **config.promote.model_dump(),
        checkpoint=str(checkpoint),
        scores=str(scores),
        tracking=config.tracking,
        ray=config.ray,
    )


def plan(config: RunConfig) -> JobPlan:
    """Returns what the job reads and writes."""
    ingest = ingest_config(config)
    folder = folder_of(config)
    return JobPlan(
        reads=(config.input or str(synthetic_folder(ingest)),),
        writes=(
            f"{folder}/{{clips,pretrain,evaluate,report.html}}",
            f"models:/{config.promote.model_prefix}-{{video,audio}}@{config.promote.alias}",
        ),
        mistakes=(
            *_run_mistakes(config, ingest),
            *decoder_mistakes(config, config.ingest.decoder),
            *gpu_mistakes(config, _wants_gpu(config)),
            *environment_mistakes(config, str(folder)),
        ),
        notes=lambda: init_notes(pretrain_config(config)),
    )


def _run_mistakes(config: RunConfig, ingest: IngestConfig) -> tuple[str, ...]:
    """Returns why the run cannot start or continue with this input and these settings."""
    begun = folder_of(config) / CONFIG_FILE
    if begun.is_file() and (there := begun_input(begun)) != config.input:
        return (
            f"name ({config.name}) is a run in {config.output} over "
            f"{there or 'clips made on the spot'}, not over "
            f"{config.input or 'clips made on the spot'}; give this one another name, such as "
            f"name={config.name}-2",
        )
    return (
        *messages(lambda: check_ingest(config.input, ingest.output, config.ingest)),
        *run_mistakes(pretrain_config(config)),
        *init_mistakes(pretrain_config(config)),
    )


def _wants_gpu(config: RunConfig) -> dict[str, bool]:
    return {
        "pretrain.use_gpu": config.pretrain.use_gpu,
        "evaluate.use_gpu": config.evaluate.use_gpu,
    }


def work(config: RunConfig) -> None:
    """Runs all stages and prints the results."""
    started = time.monotonic()
    folder = folder_of(config)
    run_folder = RunFolder(folder)
    with (
        run_folder.locked(),
        connected(config.ray),
        tracked(run_folder.open_run(config, "run", config.name)) as parent,
    ):
        # Before hours of ingest and training.
        check_gpus(_wants_gpu(config), config.ray.wait_seconds)
        summary = ingest_stage(ingest_config(config), parent)
        training = pretrain_stage(pretrain_config(config), parent)
        evaluation = evaluate_stage(evaluate_config(config, training.checkpoint), parent)
        promotion = promote_config(config, training.checkpoint, evaluation.scores_file)
        registered = promote_stage(promotion, parent)
        progress = StageProgress("report", "pages")
        report = write_run_report(
            folder / "report.html",
            RunRecord(
                config,
                summary,
                training,
                evaluation,
                tuple(registered),
                parent,
                time.monotonic() - started,
            ),
        )
        parent.log_file(report)
        progress.finish(str(report))
    print(f"\n{config.name} is complete after {duration(time.monotonic() - started)}")
    print(f"  {summary_text(summary)}")
    print(score_table(evaluation.scores.found))
    print_marks(evaluation.scores.marks)
    print(registered_text(registered))
    print(f"  report: {report}")
    print(f"  MLflow: {parent.page()}")
    if command := parent.server_command():
        print(f"    after: {command}")


JOB = Job(
    summary=JOBS["run"],
    schema=RunConfig,
    plan=plan,
    work=work,
    for_media=arguments_for_media,
    how_to_go_on="Finished shards and checkpoints are kept; the same command continues from there.",
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))

"""`python -m ray_jobs.evaluate CONFIG.yaml`: how good the features of a checkpoint are."""

import sys

from pipelines.config.evaluate import EvaluateConfig
from pipelines.evaluation.evaluate import Evaluation, check_evaluate, evaluate
from pipelines.evaluation.scores import FeatureScores
from pipelines.quantities import counted
from pipelines.tracking.runs import RunRef
from ray_jobs.cli.checks import check_gpus, environment_mistakes, gpu_mistakes
from ray_jobs.cli.cluster import connected
from ray_jobs.cli.console import StageProgress, table
from ray_jobs.cli.job import Job, JobPlan, run_job
from ray_jobs.cli.jobs import JOBS


def plan(config: EvaluateConfig) -> JobPlan:
    """What evaluation reads and writes."""
    return JobPlan(
        reads=(config.checkpoint, config.dataset),
        writes=(config.output,),
        mistakes=(
            *check_evaluate(config),
            *gpu_mistakes(config, {"use_gpu": config.use_gpu}),
            *environment_mistakes(config, config.output),
        ),
    )


def evaluate_stage(config: EvaluateConfig, parent: RunRef | None = None) -> Evaluation:
    """Evaluates with progress.

    Raises:
        UserError: if it needs a GPU that no node of Ray has.
    """
    check_gpus({"use_gpu": config.use_gpu})
    progress = StageProgress("evaluate", "clips")
    evaluation = evaluate(config, on_progress=progress, parent=parent)
    progress.finish(
        f"{counted(len(evaluation.features.clip_ids), 'clip')}; {evaluation.scores_file}"
    )
    return evaluation


def score_table(scores: FeatureScores) -> str:
    """Accuracies of trained and untrained encoders, or why there are none."""
    if not scores.modalities:
        return f"  no scores: {scores.reason or 'no split has the modality'}"
    rows = [("held-out accuracy", "k-NN", "linear probe", "most frequent class")]
    for modality, networks in scores.modalities.items():
        for network, score in networks.items():
            majority = f"{score.majority:.1%}" if network == "trained" else ""
            measures = (f"{score.knn:.1%}", f"{score.linear:.1%}")
            rows.append((f"{modality}, {network}", *measures, majority))
    return table(rows)


def work(config: EvaluateConfig) -> None:
    """Evaluates and prints the scores."""
    with connected(config.ray):
        evaluation = evaluate_stage(config)
    print(score_table(evaluation.scores.found))
    print(f"scores: {evaluation.scores_file}")


JOB = Job(
    summary=JOBS["evaluate"],
    schema=EvaluateConfig,
    plan=plan,
    work=work,
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))

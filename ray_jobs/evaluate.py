"""`python -m ray_jobs.evaluate CONFIG.yaml`: scores the features of a checkpoint."""

import sys

from pipelines.config.evaluate import EvaluateConfig
from pipelines.evaluation.evaluate import Evaluation, check_evaluate, evaluate
from pipelines.evaluation.intervals import Figure
from pipelines.evaluation.scores import (
    MEASURES,
    METRICS,
    SUBJECTS,
    FeatureScores,
    interval_text,
)
from pipelines.quantities import counted
from pipelines.tracking.runs import RunRef
from ray_jobs.cli.checks import check_gpus, environment_mistakes, gpu_mistakes
from ray_jobs.cli.cluster import connected
from ray_jobs.cli.console import StageProgress, table
from ray_jobs.cli.job import Job, JobPlan, run_job
from ray_jobs.cli.jobs import JOBS

_MAIN_RANK = "recall@5"


def plan(config: EvaluateConfig) -> JobPlan:
    """Returns what the job reads and writes."""
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
        UserError: If it needs a GPU and no node of Ray has one.
    """
    check_gpus({"use_gpu": config.use_gpu})
    progress = StageProgress("evaluate", "clips")
    evaluation = evaluate(config, on_progress=progress, parent=parent)
    progress.finish(
        f"{counted(len(evaluation.features.clip_ids), 'clip')}; {evaluation.scores_file}"
    )
    return evaluation


def score_table(scores: FeatureScores) -> str:
    """Returns one row for each measure of trained encoders beside untrained ones, with intervals.

    A measure is shown by its main figure; `scores.json` has all of them.
    """
    if not scores.modalities and not scores.retrieval:
        return f"  no scores: {scores.reason or 'no split has the modality'}"
    rows: list[tuple[str, ...]] = [
        ("held-out score", "trained", "95 % interval", "untrained", "difference", "by chance")
    ]
    for subject, networks in scores.modalities.items():
        trained, untrained = networks["trained"], networks.get("untrained")
        for measure, one in trained.measures.items():
            before = untrained.measures[measure].score if untrained else None
            metric = next(name for name, figure in one.figures.items() if figure is one.score)
            name = f"{SUBJECTS[subject]}, {MEASURES[measure]} {METRICS[metric]}"
            gain = scores.gains.get(f"{subject}/{measure}")
            rows.append(_row(name, one.score, before, gain, f"{trained.majority:.1%}"))
    rows += _retrieval_rows(scores)
    counts = next(iter(scores.modalities.values()), {}).get("trained")
    notes = ["  all figures, such as top-5 and median rank: scores.json"]
    notes += [f"  note: {note}" for note in scores.notes]
    if counts:
        notes.append(
            f"  {counted(counts.num_test, 'test clip')} of {counted(counts.num_sources, 'source')}"
        )
    if not scores.modalities:
        notes.append(f"  no scores of labels: {scores.reason or 'no split has the modality'}")
    return "\n".join([table(rows), *notes])


def _retrieval_rows(scores: FeatureScores) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for direction, ranks in scores.retrieval.items():
        trained = ranks["trained"]
        before = ranks["untrained"].figures[_MAIN_RANK] if "untrained" in ranks else None
        gain = scores.gains.get(f"{direction}/{_MAIN_RANK}")
        name = f"{SUBJECTS[direction]}, {_MAIN_RANK}"
        chance = f"{trained.chance[_MAIN_RANK]:.1%}"
        rows.append(_row(name, trained.figures[_MAIN_RANK], before, gain, chance))
    return rows


def _row(
    name: str, figure: Figure, before: Figure | None, gain: Figure | None, chance: str
) -> tuple[str, ...]:
    interval = difference = ""
    if figure.low is not None and figure.high is not None:
        interval = f"{figure.low:.1%} to {figure.high:.1%}"
    if gain is not None:
        difference = f"{100 * gain.value:+.1f} {interval_text(gain)}".rstrip()
    untrained = "" if before is None else f"{before.value:.1%}"
    return name, f"{figure.value:.1%}", interval, untrained, difference, chance


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

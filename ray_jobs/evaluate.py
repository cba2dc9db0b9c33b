"""`python -m ray_jobs.evaluate CONFIG.yaml`: how good the features of a checkpoint are."""

import sys

from pipelines.config.base import locations_of
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


def plan(config: EvaluateConfig) -> JobPlan:
    """What evaluation reads and writes."""
    return JobPlan(
        reads=(config.checkpoint, *locations_of(config.dataset)),
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
    """Scores of trained and untrained encoders with their intervals, or why there are none."""
    if not scores.modalities and not scores.retrieval:
        return f"  no scores: {scores.reason or 'no split has the modality'}"
    rows: list[tuple[str, ...]] = [
        ("held-out score", "trained", "95 % interval", "untrained", "difference", "by chance")
    ]
    for subject, networks in scores.modalities.items():
        trained, untrained = networks["trained"], networks.get("untrained")
        for measure, one in trained.measures.items():
            for metric, figure in one.figures.items():
                before = untrained.measures[measure].figures[metric] if untrained else None
                is_first = figure is one.score
                gain = scores.gains.get(f"{subject}/{measure}") if is_first else None
                name = f"{SUBJECTS[subject]}, {MEASURES[measure]} {METRICS[metric]}"
                chance = f"{trained.majority:.1%}" if is_first else ""
                rows.append(_row(name, figure, before, gain, chance))
    rows += _retrieval_rows(scores)
    counts = next(iter(scores.modalities.values()), {}).get("trained")
    notes = [f"  note: {note}" for note in scores.notes]
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
        for name, figure in ranks["trained"].figures.items():
            before = ranks["untrained"].figures[name] if "untrained" in ranks else None
            chance = _number(name, ranks["trained"].chance[name])
            title = f"{SUBJECTS[direction]}, {name.replace('_', ' ').replace('/', ' of ')}"
            gain = scores.gains.get(f"{direction}/{name}")
            rows.append(_row(title, figure, before, gain, chance))
    return rows


def _row(
    name: str, figure: Figure, before: Figure | None, gain: Figure | None, chance: str
) -> tuple[str, ...]:
    interval = difference = ""
    if figure.low is not None and figure.high is not None:
        interval = f"{_number(name, figure.low)} to {_number(name, figure.high)}"
    if gain is not None:
        difference = f"{100 * gain.value:+.1f} {interval_text(gain)}".rstrip()
    untrained = "" if before is None else _number(name, before.value)
    return name, _number(name, figure.value), interval, untrained, difference, chance


def _number(name: str, value: float) -> str:
    """Ranks and d' are numbers, all others shares."""
    is_number = name.endswith(("rank", "d'"))
    return f"{value:.1f}" if is_number else f"{value:.1%}"


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

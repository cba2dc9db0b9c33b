"""`python -m ray_jobs.evaluate CONFIG.yaml`: scores the features of an encoder."""

import sys
from collections.abc import Sequence
from typing import Literal

from pipelines.config.base import locations_of
from pipelines.config.evaluate import EvaluateConfig
from pipelines.dataset.joined import open_datasets
from pipelines.evaluation.checks import Sources, check_evaluate, networks_to_score
from pipelines.evaluation.evaluate import Evaluation, evaluate
from pipelines.evaluation.intervals import Figure
from pipelines.evaluation.networks import EncoderSource
from pipelines.evaluation.scores import (
    MEASURES,
    METRICS,
    SUBJECTS,
    FeatureScores,
    interval_text,
)
from pipelines.quantities import counted
from pipelines.registry.encoder_sources import encoder_sources
from pipelines.storage import AnyPath, path_of
from pipelines.tracking.runs import RunRef
from ray_jobs.cli.checks import check_gpus, environment_mistakes, gpu_mistakes, messages
from ray_jobs.cli.cluster import connected
from ray_jobs.cli.console import StageProgress, table
from ray_jobs.cli.job import Job, JobPlan, run_job
from ray_jobs.cli.jobs import JOBS

_MAIN_RANK = "recall@5"


def plan(config: EvaluateConfig) -> JobPlan:
    """Returns what the job reads and writes."""
    reads = (*config.checkpoint, *config.against, *locations_of(config.dataset))
    return JobPlan(
        reads=reads,
        writes=(config.output,),
        mistakes=(
            *_mistakes(config),
            *gpu_mistakes(config, {"use_gpu": config.use_gpu}),
            *environment_mistakes(config, config.output),
        ),
    )


def _mistakes(config: EvaluateConfig) -> tuple[str, ...]:
    """What is wrong with the encoders, or else with the clips."""
    checks = (
        lambda: _found(config, "checkpoint"),
        lambda: _found(config, "against"),
        lambda: open_datasets(config.dataset),
    )
    return messages(*checks) or tuple(check_evaluate(config, _networks(config)))


def _found(
    config: EvaluateConfig, setting: Literal["checkpoint", "against"], copies: AnyPath | None = None
) -> tuple[EncoderSource, ...]:
    return encoder_sources(
        getattr(config, setting),
        setting=setting,
        role=config.role,
        published=config.published,
        tracking=config.tracking,
        copies=copies,
    )


def _networks(config: EvaluateConfig, copies: AnyPath | None = None) -> Sources:
    return networks_to_score(
        config, _found(config, "checkpoint", copies), _found(config, "against", copies)
    )


def evaluate_stage(config: EvaluateConfig, parent: RunRef | None = None) -> Evaluation:
    """Evaluates with progress.

    Raises:
        UserError: If it needs a GPU and no node of Ray has one, or an encoder is missing.
    """
    check_gpus({"use_gpu": config.use_gpu}, config.ray.wait_seconds)
    progress = StageProgress("evaluate", "clips")
    networks = _networks(config, path_of(config.output) / "encoders")
    evaluation = evaluate(config, networks, on_progress=progress, parent=parent)
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
            known = untrained.measures.get(measure) if untrained else None
            before = known.score if known else None
            metric = next(name for name, figure in one.figures.items() if figure is one.score)
            name = f"{SUBJECTS[subject]}, {MEASURES[measure]} {METRICS[metric]}"
            gain = scores.gains.get(f"{subject}/{measure}")
            rows.append(_row(name, one.score, before, gain, f"{trained.majority:.1%}"))
            if (best := one.figures.get(f"{metric}_chosen_on_test")) is not None:
                rows.append(_row(f"{name}, chosen on the test clips", best, None, None, ""))
    rows += _retrieval_rows(scores)
    texts = [table(rows), *_reference_table(scores)]
    counts = next(iter(scores.modalities.values()), {}).get("trained")
    notes = ["  all figures, such as top-5 and median rank: scores.json"]
    notes += [f"  note: {note}" for note in scores.notes]
    if counts:
        notes.append(
            f"  {counted(counts.num_test, 'test clip')} of {counted(counts.num_sources, 'source')}"
        )
    if not scores.modalities:
        notes.append(f"  no scores of labels: {scores.reason or 'no split has the modality'}")
    return "\n".join([*texts, *notes])


def _reference_table(scores: FeatureScores) -> list[str]:
    """The differences to the encoder that was compared with."""
    rows: list[tuple[str, ...]] = [("compared with the reference", "difference", "95 % interval")]
    for path, change in scores.over_reference.items():
        subject, name = path.split("/", 1)
        title = f"{SUBJECTS[subject]}, {MEASURES.get(name, name)}"
        rows.append((title, f"{100 * change.value:+.1f}", interval_text(change)))
    return ["", table(rows)] if len(rows) > 1 else []


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


def print_marks(marks: Sequence[str]) -> None:
    """Prints what sets figures apart from those of the whole official split."""
    for mark in marks:
        print(f"  not the whole official figure: {mark}")


def work(config: EvaluateConfig) -> None:
    """Evaluates and prints the scores."""
    with connected(config.ray):
        evaluation = evaluate_stage(config)
    print(score_table(evaluation.scores.found))
    print_marks(evaluation.scores.marks)
    print(f"scores: {evaluation.scores_file}")


JOB = Job(
    summary=JOBS["evaluate"],
    schema=EvaluateConfig,
    plan=plan,
    work=work,
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))

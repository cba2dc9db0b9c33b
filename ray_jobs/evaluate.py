"""`python -m ray_jobs.evaluate CONFIG.yaml`: how good the features of a checkpoint are."""

import sys
from collections.abc import Mapping
from typing import Any

import torch

from pipelines.config.base import JobConfig
from pipelines.config.evaluate import EvaluateConfig
from pipelines.evaluation.evaluate import Evaluation, check_evaluate, evaluate
from pipelines.tracking.tracker import RunRef
from ray_jobs.cli.checks import surroundings
from ray_jobs.cli.cluster import connected, ray_address
from ray_jobs.cli.console import StageProgress, table
from ray_jobs.cli.main import Job, Plan, run_job


def plan(config: EvaluateConfig) -> Plan:
    """What evaluation reads and writes."""
    return Plan(
        reads=(config.checkpoint, config.dataset),
        writes=(config.output,),
        mistakes=(
            *check_evaluate(config),
            *gpu_mistakes(config, {"use_gpu": config.use_gpu}),
            *surroundings(config, config.output),
        ),
    )


def gpu_mistakes(config: JobConfig, wanted: Mapping[str, bool]) -> tuple[str, ...]:
    """The settings that want a GPU which a Ray of this process's own will not have.

    What a cluster has is known only once it is connected.
    """
    if ray_address(config.ray) is not None or torch.cuda.device_count():
        return ()
    return tuple(
        f"{name} (True) needs a GPU, but this machine has none" for name in wanted if wanted[name]
    )


def evaluate_stage(config: EvaluateConfig, parent: RunRef | None = None) -> Evaluation:
    """Evaluates with progress."""
    progress = StageProgress("evaluate", "clips")
    evaluation = evaluate(config, on_progress=progress, parent=parent)
    progress.finish(f"{len(evaluation.features.clip_ids)} clips; {evaluation.scores_file}")
    return evaluation


def score_table(scores: dict[str, Any]) -> str:
    """Accuracies of trained and untrained encoders, or why there are none."""
    if not scores["modalities"]:
        return f"  no scores: {scores['reason'] or 'no split has the modality'}"
    rows = [("held-out accuracy", "k-NN", "linear probe", "most frequent class")]
    for modality, networks in scores["modalities"].items():
        for network, values in networks.items():
            majority = f"{values['majority']:.1%}" if network == "trained" else ""
            measures = (f"{values['knn']:.1%}", f"{values['linear']:.1%}")
            rows.append((f"{modality}, {network}", *measures, majority))
    return table(rows)


def work(config: EvaluateConfig) -> None:
    """Evaluates and prints the scores."""
    with connected(config.ray):
        evaluation = evaluate_stage(config)
    print(score_table(evaluation.scores))
    print(f"scores: {evaluation.scores_file}")


JOB = Job(
    name="evaluate",
    about="How good the features of a checkpoint are: k-NN and linear probe, per modality.",
    schema=EvaluateConfig,
    plan=plan,
    work=work,
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))

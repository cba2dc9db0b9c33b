"""`python -m ray_jobs.suite CONFIG.yaml`: one encoder on several datasets, on one card."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.mistakes import described_mistakes
from pipelines.config.suite import SuiteConfig, SuiteEntry
from pipelines.errors import UserError
from pipelines.evaluation.card import CardEntry, card_rows, write_card
from pipelines.quantities import counted
from pipelines.storage import path_of
from pipelines.tracking.runs import open_run, tracked
from ray_jobs.cli.checks import environment_mistakes, messages
from ray_jobs.cli.cluster import connected
from ray_jobs.cli.configurations import find_configuration
from ray_jobs.cli.console import StageProgress, table
from ray_jobs.cli.job import Job, JobPlan, run_job
from ray_jobs.cli.jobs import JOBS
from ray_jobs.cli.settings import load_settings
from ray_jobs.evaluate import evaluate_stage
from ray_jobs.evaluate import plan as plan_evaluation


def evaluations(config: SuiteConfig) -> dict[str, EvaluateConfig]:
    """Returns the settings of each evaluation by name.

    Raises:
        UserError: If a configuration does not exist or is wrong.
    """
    return {entry.name or entry.config: _evaluation(config, entry) for entry in config.suite}


def _evaluation(config: SuiteConfig, entry: SuiteEntry) -> EvaluateConfig:
    name = Path(entry.name or entry.config).stem
    try:
        found = find_configuration(JOBS["evaluate"], entry.config, [])
    except UserError as error:
        text = str(error).replace("argument (", "config (", 1)
        raise UserError(f"suite ({name}): {text}") from None
    values: dict[str, Any] = load_settings(EvaluateConfig, found.file, []).model_dump(mode="json")
    values |= entry.settings
    values |= {
        "name": f"{config.name}-{name}",
        "checkpoint": config.checkpoint,
        "against": config.against,
        "published": config.published.model_dump(mode="json"),
        "output": f"{config.output}/{name}",
        "tracking": config.tracking.model_dump(mode="json"),
        "ray": config.ray.model_dump(mode="json"),
    }
    # Evaluations of one dataset share what is embedded, unless one names a cache of its own.
    values["cache"] = values["cache"] or f"{config.output}/features"
    if entry.dataset is not None:
        values["dataset"] = entry.dataset
    if entry.lists is not None:
        values["official"] = {**(values["official"] or {}), "lists": entry.lists}
    try:
        return EvaluateConfig.model_validate(values)
    except ValidationError as error:
        mistakes = described_mistakes(error, EvaluateConfig)
        raise UserError(f"suite ({name}): {'; '.join(one.text for one in mistakes)}") from None


def plan(config: SuiteConfig) -> JobPlan:
    """What the evaluations read and write."""
    wrong = messages(lambda: evaluations(config))
    plans = {} if wrong else {n: plan_evaluation(one) for n, one in evaluations(config).items()}
    mistakes = [
        f"suite ({name}): {mistake}" for name, one in plans.items() for mistake in one.mistakes
    ]
    return JobPlan(
        reads=tuple(dict.fromkeys(path for one in plans.values() for path in one.reads)),
        writes=(config.output,),
        mistakes=(*wrong, *(mistakes or environment_mistakes(config, config.output))),
    )


def work(config: SuiteConfig) -> None:
    """Evaluates one after another and writes the card."""
    entries: list[CardEntry] = []
    output = path_of(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with connected(config.ray), tracked(open_run(config, "suite", config.name)) as run:
        for name, one in evaluations(config).items():
            entries.append(CardEntry(name, one, evaluate_stage(one, run).scores))
            # After each, so that what is done is on the card if a later one fails.
            card = write_card(output, config.name, entries)
        run.log_file(card)
    StageProgress("suite", "evaluations").finish(counted(len(entries), "evaluation"))
    print(_table(entries))
    print(f"card: {card}")


def _table(entries: Sequence[CardEntry]) -> str:
    """The card without the columns that a terminal has no room for."""
    return table([(*row[:6], row[9]) for row in card_rows(entries)])


JOB = Job(
    summary=JOBS["suite"],
    schema=SuiteConfig,
    plan=plan,
    work=work,
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))

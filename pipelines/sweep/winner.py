"""The best settings of a sweep, written as a configuration that trains them at full length."""

import shlex
from typing import Any

import yaml

from pipelines.config.dotted import merged
from pipelines.config.pretrain import PretrainSettings
from pipelines.config.sweep import SweepConfig
from pipelines.evaluation.scores import MEASURES, percent
from pipelines.files import replacing
from pipelines.redaction import redacted
from pipelines.storage import AnyPath
from pipelines.sweep.results import last_objective
from pipelines.sweep.space import settings_of
from pipelines.sweep.sweep import SweepResult
from pipelines.sweep.trial_files import Trial

_WINNER_FILE = "best.yaml"


def write_winner(config: SweepConfig, result: SweepResult) -> AnyPath:
    """Writes the best settings as a configuration of `ray_jobs.pretrain`, and returns its path."""
    file = result.folder / _WINNER_FILE
    values = {
        "name": f"{config.name}-best"[:80],
        "dataset": config.dataset,
        "output": str(result.folder / "best"),
        **best_values(config, result.best),
    }
    tracking = config.tracking.model_dump(exclude_defaults=True)
    uri = tracking.get("uri") or ""
    has_password = redacted(uri) != uri
    if has_password:
        del tracking["uri"]
    if tracking:
        values["tracking"] = tracking
    score = percent(last_objective(config, result.best)).replace("\u00a0", " ")
    notes = f"# Warning: it completed, {result.best.reason}\n" if result.best.reason else ""
    if has_password:
        notes += f"# MLflow: set MLFLOW_TRACKING_URI ({redacted(uri)}); no password is stored.\n"
    header = (
        f"# {result.best.name} of the sweep {config.name}: {objective_name(config)} {score}.\n"
        f"{notes}#\n#   {winner_command(file)}\n"
    )
    with replacing(file) as temporary:
        temporary.write_text(header + yaml.safe_dump(values, sort_keys=False, width=100))
    return file


def winner_command(file: AnyPath) -> str:
    """Returns the command that trains the best settings."""
    return f"python -m ray_jobs.pretrain {shlex.quote(str(file))}"


def objective_name(config: SweepConfig) -> str:
    """Returns the objective's name for people."""
    side = config.objective.modality
    sides = "mean of video and audio" if side in ("mean", "both") else side
    return f"{MEASURES[config.objective.measure]}, {sides}"


def best_values(config: SweepConfig, best: Trial) -> dict[str, Any]:
    """Returns the best settings at full length, as far as they differ from the defaults."""
    settings = settings_of(config.space, best.values)
    if config.final is not None and config.final.epochs is not None:
        settings["epochs"] = config.final.epochs
    values = merged(config.pretrain.model_dump(mode="json"), settings)
    checked = PretrainSettings.model_validate(values)
    return checked.model_dump(mode="json", exclude_defaults=True)

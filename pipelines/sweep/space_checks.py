"""Checks of the space of a sweep before anything starts."""

import os
from itertools import chain
from typing import Any

from pipelines.config.mistakes import mistakes_in
from pipelines.config.pretrain import PretrainSettings
from pipelines.config.sweep import SweepConfig
from pipelines.config.weights import REGISTERED
from pipelines.paths import is_uri
from pipelines.sweep.run_trial import pretrain_values
from pipelines.sweep.space import combinations, edge_cases, overlaps, settings_of
from pipelines.sweep.trial_files import Trial

_NUM_COMBINATIONS = 200
"""Combinations of the space that are validated."""
_SAME_FOR_ALL_TRIALS = ("num_workers", "use_gpu", "cpus_per_worker", "parallelism")
"""Settings of resources: trials run at once, so all need the same."""
_NOT_IN_A_SWEEP = ("max_seconds",)
"""Settings that a trial cannot have."""
_PATHS = ("exclude", "init", "init.source", "init.video", "init.audio")


def space_mistakes(config: SweepConfig) -> list[str]:
    """Returns everything in the space that gives no valid training, each once."""
    found = _fixed_mistakes(config) + overlaps(config.space) + _edge_mistakes(config)
    found += _path_mistakes(config)
    found = found or _combination_mistakes(config)
    if not found and config.final and config.final.epochs:
        values = _values(config, {}) | {"epochs": config.final.epochs}
        found = [f"final.epochs: {mistake}" for mistake in mistakes_in(values, PretrainSettings)]
    return list(dict.fromkeys(found))


def _fixed_mistakes(config: SweepConfig) -> list[str]:
    rules = dict.fromkeys(
        _SAME_FOR_ALL_TRIALS, "must be set under pretrain, the same for all trials"
    )
    rules |= dict.fromkeys(_NOT_IN_A_SWEEP, "must not be set in a sweep")
    return [
        f"space.{key}: {name} {rules[name]}"
        for key, domain in config.space.items()
        for name in chain((key,), *(domain.bundles or {}).values())
        if name in rules
    ]


def _edge_mistakes(config: SweepConfig) -> list[str]:
    """Returns mistakes of each end and option by itself."""
    found = []
    for key, value, values in edge_cases(config.space):
        for mistake in mistakes_in(_values(config, values), PretrainSettings):
            at = "" if "is not a setting" in mistake else f" at {value}"
            found.append(f"space.{key}{at}: {mistake}")
    return found


def _path_mistakes(config: SweepConfig) -> list[str]:
    """Returns relative paths: trials have working directories of their own."""
    found = []
    for key, _, values in edge_cases(config.space):
        for name, path in settings_of(config.space, values).items():
            if name not in _PATHS or not isinstance(path, str) or path.startswith(REGISTERED):
                continue
            if not os.path.isabs(path) and not is_uri(path):
                found.append(f"space.{key}: {name} ({path}) must be an absolute path in a space")
    return found


def _combination_mistakes(config: SweepConfig) -> list[str]:
    """Returns the first invalid combination, such as two settings that exclude each other."""
    for values in combinations(config.space, _NUM_COMBINATIONS, config.search.seed):
        mistakes = mistakes_in(_values(config, values), PretrainSettings)
        if mistakes:
            return [f"space has combinations that are not valid, as {values}: {mistakes[0]}"]
    return []


def _values(config: SweepConfig, values: dict[str, Any]) -> dict[str, Any]:
    return pretrain_values(config, Trial(0, values))

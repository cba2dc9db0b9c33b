"""Fixes the registered versions that the trials of a sweep begin from.

An alias in `pretrain.init` or in the space is resolved once, when the sweep begins, and recorded in
its `run.json`, so that all trials begin from the same weights, also after a resume:

    init: models:/xkd-video@champion   ->   models:/xkd-video/3
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from pipelines.config.mistakes import described_mistakes
from pipelines.config.sweep import SweepConfig
from pipelines.config.weights import REGISTERED
from pipelines.errors import UserError
from pipelines.registry.uri import resolve_model
from pipelines.storage import path_of
from pipelines.tracking.run_folder import RunFolder

INIT_VERSIONS = "init_versions"
"""Key of the versions in `run.json`, by the URIs with aliases."""


def init_versions(config: SweepConfig) -> dict[str, str]:
    """Returns the version of each alias that a sweep begins from, as it was when it began.

    Raises:
        UserError: if an alias does not exist or MLflow does not answer.
    """
    folder = RunFolder(path_of(config.output) / config.name)
    known = folder.began_with.get(INIT_VERSIONS)
    if known is not None:
        return dict(known)
    aliases = sorted(set(_aliases(_settings_naming_weights(config))))
    return {alias: resolve_model(alias, config.tracking).uri for alias in aliases}


def with_versions(config: SweepConfig, versions: Mapping[str, str]) -> SweepConfig:
    """Returns the settings with versions in place of aliases.

    Raises:
        UserError: if the space then names a version twice.
    """
    if not versions:
        return config
    values = config.model_dump(mode="json", exclude_unset=True)
    found = replaced(_settings_naming_weights(config, exclude_unset=True), versions)
    values["space"] = found["space"]
    if found["init"] is not None:
        values["pretrain"]["init"] = found["init"]
    try:
        return SweepConfig.model_validate(values)
    except ValidationError as error:
        aliases = ", ".join(f"{alias} is {version}" for alias, version in versions.items())
        mistake = described_mistakes(error, SweepConfig)[0].text
        raise UserError(f"{mistake} ({aliases})") from None


def _settings_naming_weights(config: SweepConfig, *, exclude_unset: bool = False) -> dict[str, Any]:
    """Returns the settings that may name weights."""
    values = config.model_dump(mode="json", exclude_unset=exclude_unset)
    return {"init": values["pretrain"].get("init"), "space": values["space"]}


def _aliases(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _aliases(inner)
    elif isinstance(value, str) and value.startswith(REGISTERED) and "@" in value:
        yield value


def replaced(value: Any, versions: Mapping[str, str]) -> Any:
    """Returns settings with versions in place of aliases."""
    if isinstance(value, Mapping):
        return {name: replaced(inner, versions) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [replaced(inner, versions) for inner in value]
    return versions.get(value, value) if isinstance(value, str) else value

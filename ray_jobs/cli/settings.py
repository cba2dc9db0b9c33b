"""YAML file + `key=value` overrides -> checked, frozen settings; every mistake at once, in words.

OmegaConf reads the file and merges the overrides, pydantic checks the plain result against the
schema in `pipelines/config/`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from pipelines.config.describe import annotation_of, is_union
from pipelines.config.mistakes import described_mistakes
from pipelines.errors import UserError

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_settings(schema: type[ConfigT], file: Path | None, overrides: Sequence[str]) -> ConfigT:
    """Reads the settings of one job; without a file the overrides are all.

    Raises:
        UserError: naming every mistake by its path, with the nearest right key for an unknown one.
    """
    values = _read(file) if file else {}
    for override in overrides:
        _apply(values, override, schema)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise UserError(_in_words(error, schema, str(file or "settings"))) from None


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"configuration file ({file}) does not exist{_neighbours(file)}")
    try:
        values = _plain(OmegaConf.load(file))
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"configuration file ({file}) is not readable YAML: {reason}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"configuration file ({file}) must hold keys and values")
    return {str(key): value for key, value in values.items()}


def _plain(values: Any) -> Any:
    return OmegaConf.to_container(values, resolve=True)


def _neighbours(file: Path) -> str:
    if not file.parent.is_dir():
        return ""
    there = sorted(path.name for path in file.parent.glob("*.yaml"))
    return f"; {file.parent} has {', '.join(there)}" if there else ""


def _apply(values: dict[str, Any], override: str, schema: type[BaseModel]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"argument ({override}) must be key=value, such as name=test")
    path = key.split(".")
    section = values
    for part in path[:-1]:
        inner = section.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(f"argument ({override}) goes through {part}, which is not a section")
        section = inner
    section[path[-1]] = _parsed(text, annotation_of(schema, path), override)


def _parsed(text: str, annotation: Any, override: str) -> Any:
    """The text as YAML, or as it stands where the setting is a text (a path may look like YAML)."""
    options = set(get_args(annotation)) if is_union(annotation) else {annotation}
    if str in options and not (text in ("null", "") and type(None) in options):
        return text
    try:
        return _plain(OmegaConf.create(f"value: {text}"))["value"]
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"argument ({override}) has a value that is not readable YAML") from error


def _in_words(error: ValidationError, schema: type[BaseModel], file: str) -> str:
    lines = [text for _, text in described_mistakes(error, schema)]
    if len(lines) == 1:
        return f"{file}: {lines[0]}"
    return "\n  ".join([f"{file}: {len(lines)} mistakes", *lines])

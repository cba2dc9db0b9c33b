"""Loads settings from a YAML file and `key=value` overrides, and reports all mistakes at once.

OmegaConf reads and merges the files. pydantic validates the result against the schema in
`pipelines/config/`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from pipelines.config.describe import annotation_of, is_union, short_form
from pipelines.config.mistakes import Mistake, described_mistakes
from pipelines.errors import UserError
from pipelines.quantities import counted
from pipelines.storage import AnyPath
from ray_jobs.cli.bases import BASE, Configuration, Keys, read_configuration

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_settings(schema: type[ConfigT], file: AnyPath | None, overrides: Sequence[str]) -> ConfigT:
    """Reads the settings of a job from a file, if there is one, and overrides.

    Raises:
        UserError: If there are mistakes. The message names each by its path, and suggests the
            nearest key for an unknown one.
    """
    values, origins = read_configuration(file, schema) if file else Configuration({}, {})
    for override in overrides:
        path = _apply(values, override, schema)
        origins = {key: base for key, base in origins.items() if key[: len(path)] != path}
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        mistakes = described_mistakes(error, schema)
        lines = [f"{mistake.text}{_origin(mistake, origins)}" for mistake in mistakes]
        raise UserError(_in_words(lines, str(file or "settings"))) from None


def _origin(mistake: Mistake, origins: Mapping[Keys, AnyPath]) -> str:
    """Returns the base that a wrong value comes from."""
    for path, base in origins.items():
        is_inside = mistake.path[: len(path)] == path
        is_unknown_section = mistake.is_unknown and path[: len(mistake.path)] == mistake.path
        if is_inside or is_unknown_section:
            return f" (in {base})"
    return ""


def _plain(values: Any) -> Any:
    return OmegaConf.to_container(values, resolve=True)


def _apply(values: dict[str, Any], override: str, schema: type[BaseModel]) -> Keys:
    """Applies `key=value` to the values; returns the parts of the key."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"argument ({override}) must be key=value, such as name=test")
    path = tuple(key.split("."))
    if path[-1] == BASE and annotation_of(schema, path) is None:
        raise UserError(f"argument ({override}): {key} can only be set in a file")
    section = values
    for depth, part in enumerate(path[:-1], start=1):
        inner = section.setdefault(part, {})
        if inner is None:
            section[part] = inner = {}
        if isinstance(inner, str) and (short := short_form(schema, path[:depth])):
            section[part] = inner = {short: inner}
        if not isinstance(inner, dict):
            raise UserError(f"argument ({override}) goes through {part}, which is not a section")
        section = inner
    section[path[-1]] = _parsed(text, annotation_of(schema, path), override)
    return path


def _parsed(text: str, annotation: Any, override: str) -> Any:
    """Parses a value as YAML, or keeps it if the setting is a string (paths may look like YAML)."""
    options = set(get_args(annotation)) if is_union(annotation) else {annotation}
    is_null = text in ("null", "") and type(None) in options
    is_list = text.startswith("[") and any(get_origin(option) is tuple for option in options)
    if str in options and not is_null and not is_list:
        return text
    try:
        return _plain(OmegaConf.create(f"value: {text}"))["value"]
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"argument ({override}) has a value that is not readable YAML") from error


def _in_words(lines: Sequence[str], file: str) -> str:
    if len(lines) == 1:
        return f"{file}: {lines[0]}"
    return "\n  ".join([f"{file}: {counted(len(lines), 'mistake')}", *lines])

"""YAML file + `key=value` overrides -> checked, frozen settings; every mistake at once, in words.

OmegaConf reads the file and merges the overrides, pydantic checks the plain result against the
schema in `pipelines/config/base.py`.
"""

import difflib
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

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
    section[path[-1]] = _parsed(text, _annotation(schema, path), override)


def _parsed(text: str, annotation: Any, override: str) -> Any:
    """The text as YAML, or as it stands where the setting is a text (a path may look like YAML)."""
    options = set(get_args(annotation)) if _is_union(annotation) else {annotation}
    if str in options and not (text in ("null", "") and type(None) in options):
        return text
    try:
        return _plain(OmegaConf.create(f"value: {text}"))["value"]
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"argument ({override}) has a value that is not readable YAML") from error


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _annotation(schema: type[BaseModel], path: Sequence[str]) -> Any:
    found: Any = schema
    for part in path:
        if get_origin(found) is dict:
            found = get_args(found)[1]
            continue
        section = _section(found)
        field = section.model_fields.get(part) if section else None
        if field is None:
            return None
        found = field.annotation
    # `Annotated[str, ...] | None` keeps its annotation inside the union.
    if _is_union(found):
        return Union[tuple(get_args(a)[0] if get_origin(a) else a for a in get_args(found))]  # noqa: UP007 - built at run time
    return found


def _section(annotation: Any) -> type[BaseModel] | None:
    """The schema of a section, which may be one that can be left out (`FinalSettings | None`)."""
    options = get_args(annotation) if _is_union(annotation) else (annotation,)
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def mistakes_in(values: dict[str, Any], schema: type[BaseModel]) -> list[str]:
    """What is wrong with plain values, in words; nothing if they fit the schema."""
    try:
        schema.model_validate(values)
    except ValidationError as error:
        return [_mistake(mistake, schema) for mistake in error.errors(include_url=False)]
    return []


def _in_words(error: ValidationError, schema: type[BaseModel], file: str) -> str:
    lines = [_mistake(mistake, schema) for mistake in error.errors(include_url=False)]
    if len(lines) == 1:
        return f"{file}: {lines[0]}"
    return "\n  ".join([f"{file}: {len(lines)} mistakes", *lines])


def _mistake(mistake: Any, schema: type[BaseModel]) -> str:
    path = [str(part) for part in mistake["loc"]]
    name = ".".join(path)
    if mistake["type"] == "extra_forbidden":
        return f"{name} is not a setting{_nearest(path, schema)}"
    if mistake["type"] == "missing":
        return f"{name} is missing"
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "value_error":
        # Rules over several settings name them; a rule over one has only its value.
        return f"{name} {message}" if message.startswith("(") else _within(name, message)
    return f"{name} ({mistake['input']!r}): {message[0].lower()}{message[1:]}"


def _within(section: str, message: str) -> str:
    return f"{section}: {message}" if section else message


def _nearest(path: Sequence[str], schema: type[BaseModel]) -> str:
    section = _section(_annotation(schema, path[:-1]) if len(path) > 1 else schema)
    if section is None:
        return ""
    here = difflib.get_close_matches(path[-1], section.model_fields, n=1)
    if here:
        return f"; did you mean {'.'.join([*path[:-1], here[0]])}?"
    elsewhere = [name for name, _, _ in described(schema) if name.split(".")[-1] == path[-1]]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    return f"; settings here: {', '.join(section.model_fields)}"


def described(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every setting of a schema: its dotted name, its default and what it means."""
    for name, field in schema.model_fields.items():
        section = _section(field.annotation)
        # A section that can be left out is a setting itself: None, or what stands under it.
        if section is None or _is_union(field.annotation):
            default = "required" if field.is_required() else repr(field.default)
            yield prefix + name, default, " ".join((field.description or "").split())
        if section is not None:
            yield from described(section, f"{prefix}{name}.")

"""Reads a configuration file together with its bases.

`base:` names one YAML file or a list of them, relative to the file that contains it, at the top or
in any section of the schema:

    base: ../recipe/xkd.yaml        pretrain:
    epochs: 100                       base: [../recipe/xkd.yaml, ../hardware/one_gpu.yaml]
                                      epochs: 100

Bases merge in order: first those at the top, then those of sections, and last the file's own keys.
Mappings merge key by key; lists are replaced. A base has no base itself, so a file shows all files
that it consists of.
"""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel
from yaml import YAMLError

from pipelines.config.describe import section_of
from pipelines.errors import UserError
from pipelines.storage import AnyPath, path_of

BASE = "base"
Keys = tuple[str, ...]


class Configuration(NamedTuple):
    """The values of a file and its bases, and the origins of the latter."""

    values: dict[str, Any]
    origins: dict[Keys, AnyPath]
    """The base of each value that does not come from the file itself."""


class _Layer(NamedTuple):
    values: dict[str, Any]
    file: AnyPath | None
    """None for the file itself."""


def read_configuration(file: AnyPath, schema: type[BaseModel]) -> Configuration:
    """Reads a file with its bases.

    Raises:
        UserError: If the file or a base is missing or not a YAML mapping, or a base has a base.
    """
    own = _load(file, f"configuration file ({file})")
    layers = [*_bases(own, schema, (), file), _Layer(_without_bases(own, schema), None)]
    try:
        merged = OmegaConf.merge(*(OmegaConf.create(layer.values) for layer in layers))
        values: Any = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(
            f"configuration file ({file}) is not readable YAML: {_short(error)}"
        ) from None
    return Configuration(values, _origins(layers))


def _load(file: AnyPath, what: str) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{what} does not exist{_neighbors(file)}")
    try:
        content = io.StringIO(file.read_text(encoding="utf-8"))
        values = OmegaConf.to_container(OmegaConf.load(content), resolve=False)
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} is not readable YAML: {_short(error)}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{what} must hold keys and values")
    return {str(key): value for key, value in values.items()}


def _bases(
    values: dict[str, Any], schema: type[BaseModel], path: Keys, file: AnyPath
) -> Iterator[_Layer]:
    """Yields the bases of a section and of its inner sections, in the order of merging."""
    where = ".".join((*path, BASE))
    named = values.get(BASE, [])
    for name in named if isinstance(named, list) else [named]:
        what = f"configuration file ({file}): {where} ({name})"
        if not isinstance(name, str):
            raise UserError(f"{what} must be a YAML file, or a list of them")
        source = _beside(file, name)
        base = _load(source, what)
        for inner in _base_keys(base, schema, path):
            raise UserError(
                f"{what} must not have a base itself, but has {'.'.join(inner)}: "
                f"list both files in {file.name}"
            )
        for part in reversed(path):
            base = {part: base}
        yield _Layer(base, source)
    for key, inner_schema in _sections(values, schema):
        yield from _bases(values[key], inner_schema, (*path, key), file)


def _beside(file: AnyPath, name: str) -> AnyPath:
    """Where the file of a name lies that another file mentions."""
    path = path_of(name)
    if isinstance(path, Path):
        path = path.expanduser()
        return path if path.is_absolute() else file.parent / str(path)
    return path


def _without_bases(values: dict[str, Any], schema: type[BaseModel]) -> dict[str, Any]:
    sections = dict(_sections(values, schema))
    return {
        key: _without_bases(value, sections[key]) if key in sections else value
        for key, value in values.items()
        if key != BASE
    }


def _base_keys(values: dict[str, Any], schema: type[BaseModel], path: Keys) -> Iterator[Keys]:
    if BASE in values:
        yield (*path, BASE)
    for key, inner_schema in _sections(values, schema):
        yield from _base_keys(values[key], inner_schema, (*path, key))


def _sections(
    values: Mapping[str, Any], schema: type[BaseModel]
) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yields keys that hold a section of the schema. A bundle of a sweep may be named `base`."""
    for key, value in values.items():
        found = schema.model_fields.get(key)
        section = section_of(found.annotation) if found else None
        if section is not None and isinstance(value, dict):
            yield key, section


def _origins(layers: list[_Layer]) -> dict[Keys, AnyPath]:
    origins: dict[Keys, AnyPath] = {}
    for layer in layers:
        for path in _leaves(layer.values, ()):
            # A value replaces a section at its path, and a section replaces a value.
            kept = {
                other: file
                for other, file in origins.items()
                if other[: len(path)] != path and path[: len(other)] != other
            }
            origins = kept | ({path: layer.file} if layer.file else {})
    return origins


def _leaves(values: Mapping[str, Any], path: Keys) -> Iterator[Keys]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)


def _neighbors(file: AnyPath) -> str:
    if not file.parent.is_dir():
        return ""
    there = sorted(path.name for path in file.parent.glob("*.yaml"))
    return f"; {file.parent} has {', '.join(there)}" if there else ""


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

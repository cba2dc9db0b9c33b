"""Describes the settings of a schema: names, defaults, meanings, and which may change."""

import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_MAY_CHANGE = "may_change"
"""Mark of a setting that may differ when a run continues, in `json_schema_extra` of its field.

On a section, it applies to all settings in it. A list instead of True names the settings of the
section that may change, and overrides the marks inside.
"""

_REQUIRED = object()
"""Stands for the default of a setting that has none."""


class Setting(NamedTuple):
    """A setting as `--help` lists it."""

    name: str
    """Dotted name."""
    default: str
    """The default as a Python literal, or `required`."""
    meaning: str
    may_change: bool
    """Whether it may differ when a run continues."""


def setting_descriptions(schema: type[BaseModel]) -> Iterator[Setting]:
    """Describes every setting of a schema, in its order."""
    for name, field, value in _fields(schema, "", None):
        default = "required" if value is _REQUIRED else repr(value)
        meaning = " ".join((field.description or "").split())
        yield Setting(name, default, meaning, may_change(schema, name))


def section_description(schema: type[BaseModel], section: str) -> str:
    """Returns the description of a section, from its field or else from its class."""
    *path, name = section.split(".")
    owner = section_of(annotation_of(schema, path)) if path else schema
    field = owner.model_fields.get(name) if owner else None
    described = section_of(field.annotation) if field else None
    text = (field and field.description) or (described and described.__doc__) or ""
    return " ".join(text.split())


def may_change(schema: type[BaseModel], name: str) -> bool:
    """Returns whether a setting may differ when a run continues.

    >>> from pipelines.config.pretrain import PretrainConfig
    >>> may_change(PretrainConfig, "tracking.uri"), may_change(PretrainConfig, "seed")
    (True, False)
    """
    section: type[BaseModel] | None = schema
    path = name.split(".")
    for depth, part in enumerate(path):
        field = section.model_fields.get(part) if section else None
        if field is None:
            return False
        mark = _mark(field)
        if isinstance(mark, list):
            return depth + 1 < len(path) and path[depth + 1] in mark
        if mark:
            return True
        section = section_of(field.annotation)
    return False


def short_form(schema: type[BaseModel], path: Sequence[str]) -> str | None:
    """The setting of a section that a plain text in place of the section sets, or None.

    The mark is `short_for` in `json_schema_extra` of the section's field.

    >>> from pipelines.config.pretrain import PretrainConfig
    >>> short_form(PretrainConfig, ["init"])
    'source'
    """
    owner = section_of(annotation_of(schema, path[:-1])) if len(path) > 1 else schema
    field = owner.model_fields.get(path[-1]) if owner else None
    extra = field.json_schema_extra if field else None
    return str(extra["short_for"]) if isinstance(extra, dict) and "short_for" in extra else None


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Returns the schema of a section, even an optional one (`FinalSettings | None`), or None."""
    options = get_args(annotation) if is_union(annotation) else (annotation,)
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def annotation_of(schema: type[BaseModel], path: Sequence[str]) -> Any:
    """Returns the type of a setting; None if the schema has no such path."""
    found: Any = schema
    for part in path:
        if get_origin(found) is dict:
            found = get_args(found)[1]
            continue
        section = section_of(found)
        field = section.model_fields.get(part) if section else None
        if field is None:
            return None
        found = field.annotation
    # `Annotated[str, ...] | None` keeps its annotation inside the union.
    if is_union(found):
        return Union[tuple(get_args(a)[0] if get_origin(a) else a for a in get_args(found))]  # noqa: UP007 - built at run time
    return found


def is_union(annotation: Any) -> bool:
    """Returns whether a type is a union."""
    return get_origin(annotation) in (Union, types.UnionType)


def _mark(field: FieldInfo) -> Any:
    extra = field.json_schema_extra
    return extra.get(_MAY_CHANGE, False) if isinstance(extra, dict) else False


def _fields(
    schema: type[BaseModel], prefix: str, given: BaseModel | None
) -> Iterator[tuple[str, FieldInfo, Any]]:
    """Yields each setting with its default; `given` is the default of the whole section, if any."""
    for name, field in schema.model_fields.items():
        section = section_of(field.annotation)
        if given is not None:
            value = getattr(given, name)
        elif field.is_required():
            value = _REQUIRED
        else:
            value = field.get_default(call_default_factory=True)
        # An optional section is a setting itself, whose value may be None.
        if section is None or is_union(field.annotation):
            yield prefix + name, field, value
        if section is not None:
            default = value if isinstance(value, section) else None
            yield from _fields(section, f"{prefix}{name}.", default)

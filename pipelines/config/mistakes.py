"""Messages about values that do not fit a schema."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from pipelines.config.describe import annotation_of, section_of, setting_descriptions
from pipelines.quantities import counted

_UNKNOWN = "extra_forbidden"
_RENAMED = {"made": "synthetic"}


class Mistake(NamedTuple):
    """A mistake in one value."""

    path: tuple[str, ...]
    text: str
    is_unknown: bool
    """Whether the schema has no setting of that name."""


def mistakes_in(values: Mapping[str, Any], schema: type[BaseModel]) -> list[str]:
    """Returns one sentence for each mistake in plain values."""
    try:
        schema.model_validate(values)
    except ValidationError as error:
        return [mistake.text for mistake in described_mistakes(error, schema)]
    return []


def described_mistakes(error: ValidationError, schema: type[BaseModel]) -> list[Mistake]:
    """Returns the mistakes that a validation found."""
    found = error.errors(include_url=False)
    return [
        Mistake(
            tuple(str(part) for part in mistake["loc"]),
            _mistake(mistake, schema),
            mistake["type"] == _UNKNOWN,
        )
        for mistake in found
        if not _is_consequence(mistake, found)
    ]


def _is_consequence(mistake: Any, found: Sequence[Any]) -> bool:
    """Whether a list is too short only because pydantic dropped its wrong values."""
    depth = len(mistake["loc"])
    return mistake["type"] == "too_short" and any(
        len(other["loc"]) > depth and other["loc"][:depth] == mistake["loc"] for other in found
    )


def _mistake(mistake: Any, schema: type[BaseModel]) -> str:
    path = [str(part) for part in mistake["loc"]]
    name = ".".join(path)
    if mistake["type"] == _UNKNOWN:
        return f"{name} is not a setting{_nearest(path, schema)}"
    if mistake["type"] == "missing":
        return f"{name} is missing"
    if mistake["type"] == "tuple_type":
        return f"{name} ({mistake['input']!r}) must be a list, such as [{mistake['input']}]"
    if mistake["type"] == "too_short":
        values = counted(mistake["ctx"]["min_length"], "value")
        return f"{name} ({mistake['input']!r}) must have at least {values}"
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "value_error":
        # Rules over several settings name them; a rule over one has only its value.
        return f"{name} {message}" if message.startswith("(") else _within(name, message)
    return f"{name} ({mistake['input']!r}): {message[0].lower()}{message[1:]}"


def _within(section: str, message: str) -> str:
    return f"{section}: {message}" if section else message


def _nearest(path: Sequence[str], schema: type[BaseModel]) -> str:
    section = section_of(annotation_of(schema, path[:-1]) if len(path) > 1 else schema)
    if section is None:
        return ""
    if (new := _RENAMED.get(path[-1])) in section.model_fields:
        return f"; it is called {new} now"
    here = difflib.get_close_matches(path[-1], section.model_fields, n=1)
    if here:
        return f"; did you mean {'.'.join([*path[:-1], here[0]])}?"
    names = [setting.name for setting in setting_descriptions(schema)]
    elsewhere = [name for name in names if name.split(".")[-1] == path[-1]]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    return f"; settings here: {', '.join(section.model_fields)}"

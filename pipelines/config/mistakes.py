"""Messages about values that do not fit a schema."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from pipelines.config.describe import annotation_of, section_of, setting_descriptions
from pipelines.quantities import counted

_UNKNOWN = "extra_forbidden"
_RENAMED = {"made": "synthetic"}
_OPTION = re.compile(r"(function-\w+|tuple|list|dict|constrained-\w+)(\[|$)|constrained-\w+$")
"""How pydantic names an option of a union in the path of a mistake."""


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
    found = _of_one_option(error.errors(include_url=False))
    return [
        Mistake(
            tuple(str(part) for part in mistake["loc"]),
            _mistake(mistake, schema),
            mistake["type"] == _UNKNOWN,
        )
        for mistake in found
        if not _is_consequence(mistake, found)
    ]


def _of_one_option(found: Sequence[Any]) -> list[Any]:
    """Keeps mistakes of the options of a union that have the type of the value.

    A setting may be a text or a list of them. pydantic reports why a value is neither, and names
    the option as a part of the path:

        ("dataset", "function-after[...]") (s3://) must name a bucket    kept, as ("dataset",)
        ("dataset", "tuple[...]") must be a list                         the value is no list
    """
    kept: list[Any] = []
    for mistake in found:
        path = mistake["loc"]
        depth = next((depth for depth, part in enumerate(path) if _OPTION.match(str(part))), None)
        if depth is None:
            kept.append(mistake)
            continue
        others = [o for o in found if o["loc"][:depth] == path[:depth] and o is not mistake]
        if _has_other_type(mistake, depth) and not all(_has_other_type(o, depth) for o in others):
            continue
        kept.append({**mistake, "loc": path[:depth] + path[depth + 1 :]})
    return kept


def _has_other_type(mistake: Any, depth: int) -> bool:
    """Whether the option of a union at this depth of the path is for values of another type."""
    return len(mistake["loc"]) == depth + 1 and str(mistake["type"]).endswith("_type")


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

"""Compares the settings that a run began with and those that would continue it."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from pipelines.config.describe import may_change
from pipelines.config.dotted import flat


def fixed_settings(schema: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings by dotted name, without those that may change when a run continues."""
    return {name: value for name, value in flat(values).items() if not may_change(schema, name)}


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Describes each setting that differs there and here.

    >>> differences({"seed": 0, "splits": ["train"]}, {"seed": 1, "splits": ["train"]})
    ['seed is 0 there and 1 here']
    """
    return [
        f"{name} is {there.get(name)} there and {here.get(name)} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]


def changed_settings(
    schema: type[BaseModel], began_with: Mapping[str, Any], now: Mapping[str, Any]
) -> list[str]:
    """Describes the settings that changed but must not."""
    return differences(fixed_settings(schema, began_with), fixed_settings(schema, now))


def with_defaults(schema: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Adds defaults of newer settings to the settings of an older version.

    Values that the schema no longer accepts are returned unchanged, so that the difference shows.
    """
    try:
        return schema.model_validate(values).model_dump(mode="json")
    except ValidationError:
        return dict(values)

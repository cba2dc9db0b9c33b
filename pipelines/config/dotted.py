"""Settings by dotted name: `section.key`."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings to `section.key: value`."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def merged(base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides nested settings by dotted ones.

    >>> merged({"objective": {"alignment_weight": 1.0}}, {"objective.refinement": "none"})
    {'objective': {'alignment_weight': 1.0, 'refinement': 'none'}}
    """
    result = deepcopy(dict(base))
    for name, value in settings.items():
        *sections, last = name.split(".")
        section = result
        for part in sections:
            inner = section.setdefault(part, {})
            if not isinstance(inner, dict):
                section[part] = inner = {}
            section = inner
        section[last] = value
    return result

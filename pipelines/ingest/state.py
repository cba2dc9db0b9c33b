"""What an ingest keeps beside its shards, and whether a later one may go on from it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.config import changes
from pipelines.config.ingest import IngestSettings
from pipelines.dataset.schema import STATE_FOLDER, check_version
from pipelines.errors import UserError
from pipelines.redaction import one_line

SETTINGS_FILE = "settings.json"
REASONS_OF_LIMITS = {
    "max_bytes": "too_large",
    "max_spool_bytes": "too_large",
    "max_seconds": "too_long",
    "max_pixels": "too_many_pixels",
    "max_decode_seconds": "decoder_timeout",
    "max_memory_bytes": "out_of_memory",
    "max_damaged_fraction": "damaged",
    "formats": "format_not_allowed",
}
"""Limits that may be raised for a dataset that is there, and what they reject."""


def check_same(
    output: Path, input_path: str | None, settings: IngestSettings
) -> dict[str, Any] | None:
    """Makes sure that a folder is empty or holds a dataset of this input and these settings.

    Limits may be larger than they were, because that takes back no row.

    Returns:
        The settings that its rows were made with so far; None if there are none.

    Raises:
        UserError: If it holds anything else.
    """
    state = read_state(output, "be empty or a clip dataset")
    if state is None:
        return None
    check_version(f"output ({output})", state.get("format_version", 1))
    now = fixed_settings(settings)
    # What has become a setting since is as it always was.
    before: dict[str, Any] = now | state["settings"]
    raised = {name: before[name] for name in _limit_names() if _allows_more(now, before, name)}
    check_unchanged(
        f"output ({output}) holds another clip dataset",
        {"input": state["input"], **before},
        {"input": input_path or state["input"], **now, **raised},
    )
    return before


def _allows_more(now: Mapping[str, Any], before: Mapping[str, Any], name: str) -> bool:
    """Whether a limit is larger than it was; `all` formats are more than the `common` ones."""
    if name == "limits.formats":
        return bool((before[name], now[name]) == ("common", "all"))
    return bool(now[name] > before[name])


def _limit_names() -> list[str]:
    return [f"limits.{name}" for name in REASONS_OF_LIMITS]


def reasons_of_raised_limits(before: Mapping[str, Any], settings: IngestSettings) -> frozenset[str]:
    """What rejected sources that a limit which was raised since may let pass."""
    now = fixed_settings(settings)
    return frozenset(
        reason
        for name, reason in REASONS_OF_LIMITS.items()
        if _allows_more(now, before, f"limits.{name}")
    )


def read_state(output: Path, must: str) -> dict[str, Any] | None:
    """What a folder of results is made of; None if it is empty or not there.

    Args:
        output: The folder.
        must: What it must do, for the message.

    Raises:
        UserError: If it holds anything else, or cannot be read.
    """
    file = output / STATE_FOLDER / SETTINGS_FILE
    try:
        names = sorted(os.listdir(output)) if os.path.isdir(output) else []
        if os.path.exists(file):
            state = json.loads(file.read_text())
            if isinstance(state, dict):
                return state
            raise ValueError("it must be an object")
    except OSError as error:
        raise UserError(f"output ({output}) cannot be read: {one_line(error)}") from error
    except ValueError as error:
        raise UserError(
            f"output ({output}): {file} is damaged: {one_line(error)}; take another output"
        ) from error
    if others := [name for name in names if name != STATE_FOLDER]:
        raise UserError(f"output ({output}) must {must}, but holds {others[0]}")
    return None


def check_unchanged(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Makes sure that results are made of what they would be made of now.

    Raises:
        UserError: If they are not.
    """
    changed = changes.differences({name: there.get(name) for name in here}, here)
    if changed:
        raise UserError(f"{what}: {'; '.join(changed)}. Take another output or the same settings")


def fixed_settings(settings: IngestSettings) -> dict[str, Any]:
    """The settings that rows depend on, flat."""
    return changes.fixed_settings(IngestSettings, settings.model_dump(mode="json"))

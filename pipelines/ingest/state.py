"""Stored settings of an ingest, and checks that a later run can continue from them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.config import changes
from pipelines.config.ingest import IngestSettings
from pipelines.dataset.schema import STATE_FOLDER, check_version
from pipelines.errors import UserError
from pipelines.files import is_temporary
from pipelines.filesystems import store_failure
from pipelines.redaction import one_line
from pipelines.storage import AnyPath

SETTINGS_FILE = "settings.json"
REASONS_OF_LIMITS = {
    "max_bytes": "too_large",
    "max_spool_bytes": "too_large",
    "max_seconds": "too_long",
    "max_pixels": "too_many_pixels",
    "max_decode_seconds": "decoder_timeout",
    "max_decode_ratio": "decoder_timeout",
    "max_memory_bytes": "out_of_memory",
    "max_damaged_fraction": "damaged",
    "formats": "format_not_allowed",
}
"""Limits that may be raised for an existing dataset, with their reject reasons."""


def check_same(
    output: AnyPath, input_path: str | None, settings: IngestSettings
) -> dict[str, Any] | None:
    """Checks that a folder is empty or holds a dataset of this input and these settings.

    Limits may be raised, because that invalidates no row.

    Returns:
        The settings that its rows were made with, or None if the folder is empty.

    Raises:
        UserError: If the folder holds anything else.
    """
    state = read_state(output, "be empty or a clip dataset")
    if state is None:
        return None
    if not isinstance(state.get("settings"), dict) or "input" not in state:
        raise UserError(f"output ({output}) must be empty or a clip dataset, but holds embeddings")
    check_version(f"output ({output})", state.get("format_version", 1))
    now = fixed_settings(settings)
    # Settings that were added later have their default in older datasets.
    before: dict[str, Any] = fixed_settings(IngestSettings()) | state["settings"]
    raised = {name: before[name] for name in _limit_names() if _allows_more(now, before, name)}
    check_unchanged(
        f"output ({output}) holds another clip dataset",
        {"input": state["input"], **before},
        {"input": input_path or state["input"], **now, **raised},
    )
    return before


def _allows_more(now: Mapping[str, Any], before: Mapping[str, Any], name: str) -> bool:
    """Whether a limit was raised. For formats, `all` is more than `common`."""
    if name == "limits.formats":
        return bool((before[name], now[name]) == ("common", "all"))
    return bool(now[name] > before[name])


def _limit_names() -> list[str]:
    return [f"limits.{name}" for name in REASONS_OF_LIMITS]


def reasons_of_raised_limits(before: Mapping[str, Any], settings: IngestSettings) -> frozenset[str]:
    """Returns the reject reasons of the limits that were raised."""
    now = fixed_settings(settings)
    return frozenset(
        reason
        for name, reason in REASONS_OF_LIMITS.items()
        if _allows_more(now, before, f"limits.{name}")
    )


def read_state(output: AnyPath, must: str) -> dict[str, Any] | None:
    """Reads the stored settings of a folder of results; None if it is empty or missing.

    Args:
        output: Folder of results.
        must: Requirement on the folder, for the message.

    Raises:
        UserError: If the folder holds anything else or cannot be read.
    """
    file = output / STATE_FOLDER / SETTINGS_FILE
    try:
        # Path.is_dir raises an error inside a folder without permission.
        is_there = os.path.isdir(output) if isinstance(output, Path) else output.is_dir()
        names = sorted(path.name for path in output.iterdir()) if is_there else []
        if names and file.exists():
            state = json.loads(file.read_text())
            if isinstance(state, dict):
                return state
            raise ValueError("it must be an object")
    except OSError as error:
        raise UserError(f"output ({output}) cannot be read: {store_failure(error)}") from error
    except UserError:  # of a store, whose files may be as they should
        raise
    except ValueError as error:
        raise UserError(
            f"output ({output}): {file} is damaged: {one_line(error)}; take another output"
        ) from error
    # Killed checks and writers leave temporary files.
    if others := [name for name in names if name != STATE_FOLDER and not is_temporary(name)]:
        raise UserError(f"output ({output}) must {must}, but holds {others[0]}")
    return None


def check_unchanged(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Checks that stored results match the current input and settings.

    Raises:
        UserError: If they differ.
    """
    changed = changes.differences({name: there.get(name) for name in here}, here)
    if changed:
        raise UserError(f"{what}: {'; '.join(changed)}. Take another output or the same settings")


def fixed_settings(settings: IngestSettings) -> dict[str, Any]:
    """Returns the settings that rows depend on, as a flat dict, without those of a job around."""
    values = settings.model_dump(mode="json", include=set(IngestSettings.model_fields))
    return changes.fixed_settings(IngestSettings, values)

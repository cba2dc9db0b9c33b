"""Writes the resolved settings of a run as a configuration of the same job."""

from typing import Any

import yaml

from pipelines.config.base import JobConfig, settings_without_password
from pipelines.files import replacing
from pipelines.storage import AnyPath

CONFIG_FILE = "config.yaml"
"""Name of the file in the folder of a run."""


def write_settings(file: AnyPath, config: JobConfig) -> AnyPath:
    """Writes all settings except the password of the tracking server."""
    values = settings_without_password(config)
    header = "# The resolved settings of this run; the same job takes this file.\n"
    if values["tracking"]["uri"] != config.tracking.uri:
        header += "# The password is left out: give tracking.uri again.\n"
    text = yaml.safe_dump(_escaped(values), sort_keys=False, width=100)
    with replacing(file) as temporary:
        temporary.write_text(header + text)
    return file


def _escaped(value: Any) -> Any:
    """Escapes strings with `${...}`, so that OmegaConf reads them back unchanged."""
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value

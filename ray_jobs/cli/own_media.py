"""`xkd run MEDIA`: chooses the configuration for the machine and the name of the run."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import ray
import torch
import yaml

from pipelines.config.base import RaySettings
from pipelines.config.run import RunConfig
from pipelines.config.written import CONFIG_FILE
from pipelines.errors import UserError
from pipelines.paths import is_uri
from pipelines.quantities import counted
from pipelines.storage import AnyPath, path_of
from ray_jobs.cli.cluster import check_ray, connected, ray_address
from ray_jobs.cli.configurations import Arguments, configuration_folder, shown_file
from ray_jobs.cli.jobs import JobSummary
from ray_jobs.cli.settings import load_settings

_NAME_LENGTH = 60
_LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def arguments_for_media(job: JobSummary, media: str, overrides: Sequence[str]) -> Arguments:
    """Chooses `laptop` or `one_gpu` by the GPUs of Ray. A run that has begun keeps its settings.

    Args:
        job: The main job.
        media: An absolute path of a folder or a list, or a URI.
        overrides: The `key=value` that follow. They override the choice.

    Raises:
        UserError: If the overrides are invalid.
    """
    folder = configuration_folder() / job.name
    named = [f"name={run_name(media)}", f"{job.media}={media}", *overrides]
    # Any configuration resolves the output of the run and the address of Ray.
    config = load_settings(RunConfig, folder / "laptop.yaml", named)
    begun = path_of(config.output) / config.name / CONFIG_FILE
    if begun.is_file() and begun_input(begun) == config.input:
        # The file names its original output, which may have been moved.
        overrides = [f"output={config.output}", *overrides]
        return Arguments(begun, overrides, f"continues with {shown_file(begun)} for {media}")
    num_gpus = _most_gpus(config.ray)
    file = folder / ("one_gpu.yaml" if num_gpus else "laptop.yaml")
    gpus = counted(num_gpus, "GPU") if num_gpus else "no GPU"
    note = f"uses {shown_file(file)} (Ray has {gpus}) for {media}, named {config.name}"
    if num_gpus > 1:
        note += "; `xkd run eight_gpus` uses more than one"
    return Arguments(file, named, note)


def begun_input(file: AnyPath) -> str | None:
    """Returns the media of a run that has begun; None if synthetic, or if the file is damaged."""
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    found = values.get("input") if isinstance(values, dict) else None
    return found.replace("\\${", "${") if isinstance(found, str) else None


def run_name(media: str) -> str:
    """Returns a valid name for a run over media, from the last part of their path.

    >>> run_name("/data/My videos (2024)"), run_name("s3://bucket/été.csv")
    ('My-videos-2024', 'ete')

    A name that loses letters ends in some digits of the path's hash, so that two such folders
    get different names.
    """
    parts = urlsplit(media) if is_uri(media) else None
    path = PurePosixPath((parts.path.rstrip("/") or parts.netloc) if parts else media)
    last = path.stem if path.suffix.lower() in _LIST_SUFFIXES else path.name
    plain = unicodedata.normalize("NFKD", last)
    is_lossy = any(ord(c) > 127 and not unicodedata.combining(c) for c in plain)
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", plain.encode("ascii", "ignore").decode())
    name = text[:_NAME_LENGTH].strip("-._")
    if is_lossy or not name:
        digest = hashlib.sha256(media.encode(errors="surrogateescape")).hexdigest()[:8]
        return f"{name or 'media'}-{digest}"
    return name


def _most_gpus(config: RaySettings) -> int:
    """Returns the number of GPUs of this machine, or of the whole cluster."""
    if ray_address(config) is None:
        return torch.cuda.device_count()
    try:
        check_ray(config)
    except UserError:
        return 0  # the job's own checks report the mistake
    with connected(config):
        return int(ray.cluster_resources().get("GPU", 0))

"""Settings that all jobs share: names, paths, MLflow, Ray and limits.

The `...Settings` of a stage configure its work. The `...Config` of its job adds what it reads and
writes, so the main job can hold the settings of every stage and fill in the paths itself. Relative
paths start at `XKD_HOME`, or at the working directory if it is not set.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from pipelines.paths import absolute_location
from pipelines.redaction import redacted
from xkd_core.config import Config


def _valid_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
        raise ValueError(
            f"({name!r}) must be 1 to 80 letters, digits, dots, hyphens and underscores, and begin "
            "with a letter or a digit"
        )
    return name


def _named_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """A list whose values count once each; a repeated one would count twice in what is averaged."""
    repeated = next((value for value in values if values.count(value) > 1), None)
    if repeated is not None:
        raise ValueError(f"({repeated}) must be named once")
    return values


Name = Annotated[str, AfterValidator(_valid_name)]
NamedOnce = AfterValidator(_named_once)
"""Of a list in which no value may stand twice."""
Location = Annotated[str, Field(min_length=1), AfterValidator(absolute_location)]
"""A path, made absolute when the settings are read, or a URI that pyarrow or fsspec opens."""


Datasets = Location | Annotated[tuple[Location, ...], Field(min_length=1)]
"""A clip dataset, or several that count as one."""


def locations_of(datasets: Datasets) -> tuple[str, ...]:
    """Returns the locations of datasets."""
    return (datasets,) if isinstance(datasets, str) else datasets


class TrackingSettings(Config):
    """The MLflow that a job logs to."""

    uri: str | None = None
    """Address of an MLflow server, or `sqlite:///FILE`. Default: MLFLOW_TRACKING_URI, or else the
    file `mlflow.db` in XKD_HOME or the working directory."""
    experiment: str = Field("xkd", min_length=1)
    """Name of the MLflow experiment that gets the runs."""


class RaySettings(Config):
    """The Ray that a job runs on."""

    address: str | None = None
    """A running cluster: `auto`, `HOST:PORT` or `ray://HOST:PORT`. Default: RAY_ADDRESS, or else a
    Ray of the job's own."""
    num_cpus: PositiveInt | None = None
    """CPUs of a Ray of the job's own. Default: all of the machine."""
    wait_seconds: NonNegativeFloat | None = None
    """How long a job waits for nodes that a cluster does not have yet. Default: 600 if the cluster
    has an autoscaler or lost a node during the job, else 0. Seconds."""
    object_store_bytes: PositiveInt = 500_000_000
    """Shared memory of a Ray of the job's own, bytes."""


class JobConfig(Config):
    """Settings of every job."""

    tracking: TrackingSettings = Field(TrackingSettings(), json_schema_extra={"may_change": True})
    ray: RaySettings = Field(RaySettings(), json_schema_extra={"may_change": True})


class DecoderSettings(Config):
    """Confinement of the processes that decode."""

    sandbox: Literal["required", "best"] = "best"
    """`required` refuses to start if the kernel lacks seccomp or Landlock. `best` uses what the
    kernel has, which the job reports."""


class LimitsSettings(Config):
    """Limits of one source. Sources above a limit are rejected."""

    max_bytes: PositiveInt = 50_000_000_000
    """Size of a file, bytes."""
    max_pixels: PositiveInt = 8192 * 4320
    """Pixels of one frame."""
    max_seconds: PositiveFloat = 6 * 3600.0
    """Length of a source, seconds."""
    max_damaged_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """Share of the packets of a source's picture, or of its sound, that may be damaged. A damaged
    frame spoils those that are predicted from it too. Files with a few bad sectors, or that
    were cut off, stay below a fifth; files that show mostly noise are far above."""
    max_decode_seconds: PositiveFloat = 600.0
    """Time without a new segment from the decoder, seconds."""
    max_decode_ratio: PositiveFloat = 20.0
    """Time to decode a whole source, in seconds per second of the source, in addition to
    `max_decode_seconds`. Counts wall and CPU time, so that files that give a segment now and then
    are stopped too. 8K video takes about 10 on one core."""
    max_memory_bytes: PositiveInt = 4_000_000_000
    """Address space of a decoder beyond its idle state, bytes."""
    max_spool_bytes: PositiveInt = 20_000_000_000
    """Disk space in TMPDIR of each machine for remote files that are being decoded, bytes. Rejects
    files that are larger."""
    formats: Literal["common", "all"] = "common"
    """`common` allows the 12 containers and 25 codecs of usual corpora, and rejects other files.
    `all` allows whatever FFmpeg decodes, which gives hostile files more code to attack."""
    max_hashed_remote_bytes: NonNegativeInt = 64_000_000
    """Hashes the bytes of remote files up to this size, and keeps them in TMPDIR until they are
    decoded if `max_spool_bytes` has room. Larger files are identified by the version tag of the
    store. Bytes."""


def settings_without_password(config: JobConfig) -> dict[str, Any]:
    """Returns all settings as JSON without the password of the server, for files and logs."""
    values = config.model_dump(mode="json")
    if values["tracking"]["uri"]:
        values["tracking"]["uri"] = redacted(values["tracking"]["uri"])
    return values

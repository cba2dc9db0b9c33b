"""What the settings of all jobs share: names, paths, MLflow, Ray and limits.

A stage's `...Settings` say how it works; the job's `...Config` adds what it reads and writes, so
that the main job holds the settings of every stage and fills in the paths itself. Relative paths
start at `XKD_HOME`, or at the working directory if it is not set.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from pipelines.paths import absolute_location, absolute_place
from pipelines.redaction import redacted
from xkd_core.config import Config

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
Place = Annotated[str, Field(min_length=1), AfterValidator(absolute_place)]
"""A path, made absolute when the settings are read."""
Location = Annotated[str, Field(min_length=1), AfterValidator(absolute_location)]
"""A path, or a URI that pyarrow or fsspec opens."""


class TrackingSettings(Config):
    """Where MLflow keeps what a job measures."""

    uri: str | None = None
    """Tracking server or `sqlite:///FILE`; by default MLFLOW_TRACKING_URI, else an sqlite file
    `mlflow.db` in XKD_HOME or the working directory."""
    experiment: str = Field("xkd", min_length=1)


class RaySettings(Config):
    """Which Ray a job runs on."""

    address: str | None = None
    """A running cluster (`auto`, `host:port`, `ray://host:port`); by default RAY_ADDRESS, else a
    Ray of this process's own."""
    num_cpus: PositiveInt | None = None
    """CPUs of a Ray of its own; by default all there are."""
    object_store_bytes: PositiveInt = 500_000_000
    """Shared memory of a Ray of its own."""


class JobConfig(Config):
    """What every job has."""

    tracking: TrackingSettings = Field(TrackingSettings(), json_schema_extra={"may_change": True})
    ray: RaySettings = Field(RaySettings(), json_schema_extra={"may_change": True})


class DecoderSettings(Config):
    """How far the processes that decode are confined."""

    sandbox: Literal["required", "best"] = "best"
    """`required`: do not start where the kernel lacks seccomp or Landlock; `best`: with what it
    has, which the job says."""
    process_per_file: bool = False
    """Decode each file in a process of its own. Otherwise a file that gets hold of its process
    could falsify the files of the next two seconds of work, which share it."""


class LimitsSettings(Config):
    """What one source may cost; above it the source goes to the rejects."""

    max_bytes: PositiveInt = 50_000_000_000
    max_pixels: PositiveInt = 8192 * 4320
    """Of one frame."""
    max_seconds: PositiveFloat = 6 * 3600.0
    """Length of a source."""
    max_damaged_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """Share of the packets of a source's picture, or of its sound, that may be damaged. A damaged
    frame spoils those that are predicted from it as well; files with a few bad sectors, or that
    were cut off, stay below a fifth, and those that show mostly noise lie far above."""
    max_decode_seconds: PositiveFloat = 600.0
    """Wall time without a segment coming out of the decoder."""
    max_memory_bytes: PositiveInt = 4_000_000_000
    """Address space of a decoder beyond what it has when idle."""
    max_spool_bytes: PositiveInt = 20_000_000_000
    """Disk on each machine that remote files may take together while they are decoded, in TMPDIR;
    a file that is larger goes to the rejects."""
    formats: Literal["common", "all"] = "common"
    """`common`: the 12 containers and 25 codecs of usual corpora; a file in another one goes to the
    rejects. `all`: whatever FFmpeg decodes, which gives a hostile file more code to attack."""
    max_hashed_remote_bytes: NonNegativeInt = 64_000_000
    """A remote file up to this size is read once more, for the hash of its bytes; of a larger one
    the store's version tag stands for them."""


def settings_without_password(config: JobConfig) -> dict[str, Any]:
    """All settings as JSON for files that others may read: without the server's password."""
    values = config.model_dump(mode="json")
    if values["tracking"]["uri"]:
        values["tracking"]["uri"] = redacted(values["tracking"]["uri"])
    return values

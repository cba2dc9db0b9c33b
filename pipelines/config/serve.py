"""Settings of the job that serves a registered model."""

import os
from importlib.util import find_spec

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from pipelines.config.base import DecoderSettings, JobConfig, LimitsSettings
from pipelines.config.pull import model_uri

TOKEN = "XKD_SERVE_TOKEN"
"""Environment variable with the token that requests must have."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NEEDED = ("grpc_reflection", "python_multipart", "watchfiles")


class ServeConfig(JobConfig):
    """`ray_jobs.serve`: an HTTP service that embeds uploads and URIs."""

    model: str
    """A registered model: `xkd-video@champion`, `xkd-audio/3`, with or without `models:/`."""
    host: str = LOOPBACK[0]
    """Address to listen on. Others than loopback need a token in XKD_SERVE_TOKEN."""
    port: int = Field(8000, ge=1, le=65_535)
    """Port to listen on."""
    num_replicas: PositiveInt = 1
    """Processes that hold the encoder."""
    num_cpus: PositiveFloat = 1.0
    """CPUs of Ray for each replica, and threads of its encoder."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs of Ray for each replica; 0 runs the encoder on the CPU."""
    num_decoders: PositiveInt = 2
    """Files that a replica decodes at a time, each in a confined process."""
    max_batch_size: PositiveInt = 16
    """Segments that go through the encoder at once, of one request or of several."""
    batch_wait_seconds: NonNegativeFloat = 0.01
    """How long a batch waits for more segments."""
    max_ongoing_requests: PositiveInt = 16
    """Requests that a replica works on at a time. Each holds its upload in memory."""
    max_queued_requests: PositiveInt = 64
    """Requests that wait for a replica; more are answered with 503."""
    max_upload_bytes: PositiveInt = 200_000_000
    """Size of an upload, or of what a URI gives, bytes."""
    max_request_seconds: PositiveFloat = 120.0
    """Time of a request, from its first byte, seconds."""
    uris: tuple[str, ...] = ("https://", "http://")
    """What URIs may begin with: a scheme, a host or bucket, or a folder of the server such as
    `/media`. `https://` and `http://` alone allow public hosts only, no private or loopback
    addresses; a host that is named here may have any. `[]` takes uploads alone."""
    limits: LimitsSettings = LimitsSettings()
    decoder: DecoderSettings = DecoderSettings()

    @field_validator("num_gpus")
    @classmethod
    def _are_whole(cls, num_gpus: float) -> float:
        if num_gpus > 1 and num_gpus != int(num_gpus):
            raise ValueError(f"({num_gpus:g}) must be at most 1 or an integer")
        return num_gpus

    @model_validator(mode="after")
    def _can_serve(self) -> "ServeConfig":
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if missing:
            raise ValueError(f"serving needs {', '.join(missing)}: install xkd[serve]")
        if self.host not in LOOPBACK and not os.environ.get(TOKEN):
            raise ValueError(
                f"host ({self.host}) can be reached by others: put a token that requests must "
                f"have into {TOKEN}, or take {LOOPBACK[0]}"
            )
        return self

    @property
    def uri(self) -> str:
        """The model as MLflow names it."""
        return model_uri(self.model)

"""Checks before any work starts. They report all mistakes at once."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from pipelines.config.base import DecoderSettings, JobConfig
from pipelines.errors import UserError
from pipelines.files import check_writable
from pipelines.media.decoder.sandbox import SandboxError, available, check_required
from pipelines.nodes import wait_for_nodes
from pipelines.tracking.server import check_tracking
from ray_jobs.cli.cluster import check_ray, ray_address


def environment_mistakes(config: JobConfig, *outputs: str) -> tuple[str, ...]:
    """Returns mistakes about MLflow, Ray and the folders that a job writes to."""
    checks: list[Callable[[], None]] = [
        lambda: check_tracking(config.tracking),
        lambda: check_ray(config.ray),
    ]
    checks += [partial(check_writable, folder) for folder in outputs]
    return messages(*checks)


def gpu_mistakes(config: JobConfig, wanted: Mapping[str, bool]) -> tuple[str, ...]:
    """Returns the settings that need a GPU if the job starts its own Ray and this machine has none.

    The GPUs of a cluster are known only after connecting; see `check_gpus`.
    """
    if ray_address(config.ray) is not None or torch.cuda.device_count():
        return ()
    return tuple(
        f"{name} (True) needs a GPU, but this machine has none" for name in wanted if wanted[name]
    )


def check_gpus(wanted: Mapping[str, bool], wait_seconds: float | None) -> None:
    """Waits until the connected Ray has a GPU if a setting needs one.

    Args:
        wanted: Whether each of the settings needs one, by name.
        wait_seconds: How long to wait, see `RaySettings`.

    Raises:
        UserError: If no node has one by then; tasks would wait for it forever.
    """
    asking = [name for name, is_wanted in wanted.items() if is_wanted]
    if not asking:
        return

    def check(nodes: Sequence[Mapping[str, float]]) -> None:
        if not any(node.get("GPU", 0.0) >= 1 for node in nodes):
            raise UserError(f"{asking[0]} (True) needs a GPU, but no node of Ray has one")

    wait_for_nodes(check, [{"GPU": 1.0}], wait_seconds)


def messages(*checks: Callable[[], object]) -> tuple[str, ...]:
    """Returns the messages of the failing checks, without repetitions."""
    found = []
    for check in checks:
        try:
            check()
        except UserError as error:
            found.append(str(error))
    return tuple(dict.fromkeys(found))


def decoder_mistakes(config: JobConfig, decoder: DecoderSettings) -> tuple[str, ...]:
    """Returns mistakes about the confinement of decoding, if it runs on this machine."""
    try:
        if ray_address(config.ray) is None:
            check_required(decoder.sandbox, available())
    except SandboxError as error:
        return (str(error),)
    return ()


def decoder_text(config: JobConfig) -> str:
    """Describes the confinement of decoding in one line."""
    where = (
        ""
        if ray_address(config.ray) is None
        else " here; on other machines it depends on their kernel"
    )
    return f"{'decoder':9} {available()}{where}"

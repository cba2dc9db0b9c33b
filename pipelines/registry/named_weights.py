"""Finds the weights that a user names, in one way for every job.

    models:/xkd-video@champion            a registered version
    pulled/xkd-video-3                    its files, as `xkd pull` wrote them
    runs/smoke/pretrain/smoke, runs/smoke a checkpoint: the last of a training, or of a main job
    XKD_pretext_..._teacher.pth.tar       a file of the published method

Nothing of what is named is run or unpickled here; only safetensors and JSON are read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from pipelines.config.base import TrackingSettings
from pipelines.config.weights import REGISTERED
from pipelines.errors import UserError
from pipelines.models.checkpoints import find_checkpoint
from pipelines.models.encoder_files import SETTINGS_FILE
from pipelines.redaction import one_line
from pipelines.registry.download import RegisteredEncoder, registered_encoder
from pipelines.storage import AnyPath, path_of

_OF_A_VERSION = ("", "artifacts/encoder")
"""Where the settings lie in a folder that holds a version; the second of older releases."""


@dataclass(frozen=True)
class RegisteredWeights:
    """A version in the registry."""

    encoder: RegisteredEncoder


@dataclass(frozen=True)
class StoredWeights:
    """A folder or file on a disk or in a bucket."""

    kind: Literal["exported", "checkpoint", "published"]
    path: AnyPath
    """Of a run, its last checkpoint."""


def named_weights(given: str, tracking: TrackingSettings) -> RegisteredWeights | StoredWeights:
    """Finds what a name refers to now.

    Raises:
        UserError: If there is nothing, or nothing that holds networks of this project.
    """
    if given.startswith(REGISTERED):
        return RegisteredWeights(registered_encoder(given, tracking))
    path = path_of(given)
    if path.is_file():
        if path.suffix == ".safetensors":
            raise UserError(f"{path} lies in a folder that says what it holds: give {path.parent}")
        return StoredWeights("published", path)
    for folder in (path / inner if inner else path for inner in _OF_A_VERSION):
        if (folder / SETTINGS_FILE).is_file():
            return StoredWeights("exported", folder)
    return StoredWeights("checkpoint", find_checkpoint(given))


@contextmanager
def reading(given: str) -> Iterator[None]:
    """Turns what damaged or other files raise into one line that names them.

    Raises:
        UserError: If the files cannot be read.
    """
    try:
        yield
    except UserError:
        raise
    except (ValidationError, TypeError, KeyError) as error:
        raise UserError(
            f"{given} was written by another release, whose settings this one does not read:"
            f" {one_line(error)}"
        ) from error
    except (ValueError, OSError) as error:
        message = one_line(error)
        raise UserError(message if given in message else f"file ({given}): {message}") from error

"""Asynchronous checkpoints: copied while the next step computes, written by a thread.

Weights change only in the update of a step. A copy after step k can therefore overlap with forward
and backward of step k + 1; only its update waits for the copy (`before_update`).

    training   | step k | forward, backward | update | step k + 2 ...
    copy                | ...............   |
    thread                                  | write, sync, rename |
    reported to Ray Train, by all workers at the same step          ^

At most one checkpoint is in progress.
"""

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import train
from torch import Tensor

from pipelines.meters import show
from pipelines.models.checkpoints import TrainingInfo, checkpoint_name, save_checkpoint
from pipelines.quantities import byte_size
from pipelines.storage import AnyPath, ray_storage
from pipelines.training.agreement import Agreement
from pipelines.training.host_copy import HostCopy, Ready, map_tensors, recorded_event
from pipelines.training.stopping import Stop
from xkd_core.sharding import mapped_moments, whole

logger = logging.getLogger(__name__)

Unsent = Callable[[], Sequence[Mapping[str, Any]]]
"""Returns the metrics that MLflow has not received yet."""


class CheckpointWriter:
    """Writes checkpoints to a run's folder in a thread."""

    def __init__(self, folder: AnyPath) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._host = HostCopy()
        self._copied = threading.Event()
        self._copied.set()
        self._writing: Future[AnyPath] | None = None
        self.written: list[AnyPath] = []
        self.failure = ""

    def save(
        self,
        tensors: dict[str, Tensor],
        optimizer_state: dict[str, Any],
        info: TrainingInfo,
        unsent: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Starts to copy and write; waits only for the checkpoint before, if it is in progress."""
        self.wait()
        self._copied.clear()
        ready = recorded_event(tensors)
        self._writing = self._pool.submit(
            self._copy_and_write, tensors, optimizer_state, info, unsent, ready
        )

    def before_update(self) -> None:
        """Waits until the tensors passed to `save` may change."""
        self._copied.wait()

    def poll(self) -> None:
        """Registers a checkpoint that is complete or failed."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the checkpoint in progress."""
        if self._writing is None:
            return
        try:
            self.written.append(self._writing.result())
        except Exception as error:  # any error must reach the training
            self.failure = _failure_text(error)
            logger.exception("a checkpoint was not written")
        self._writing = None

    def close(self) -> None:
        """Waits for the checkpoint in progress and ends the thread."""
        self.wait()
        self._pool.shutdown()

    def _copy_and_write(
        self,
        tensors: dict[str, Tensor],
        optimizer_state: dict[str, Any],
        info: TrainingInfo,
        unsent: Sequence[Mapping[str, Any]],
        ready: Ready | None,
    ) -> AnyPath:
        try:
            _check_room(self._folder, tensors, optimizer_state)
            tensors, optimizer_state = self._host.take((tensors, optimizer_state), ready)
        finally:
            self._copied.set()
        path = self._folder / checkpoint_name(info.next_step)
        save_checkpoint(path, tensors, optimizer_state, info, unsent)
        return path


def _check_room(folder: AnyPath, tensors: Any, optimizer_state: Any) -> None:
    needed = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal needed
        needed += tensor.nbytes
        return tensor

    map_tensors((tensors, optimizer_state), count)
    # A remote checkpoint is written to a disk before it is uploaded.
    disk = folder if isinstance(folder, Path) else tempfile.gettempdir()
    free = shutil.disk_usage(disk).free
    if needed > free:
        raise OSError(f"the disk is full: {byte_size(needed)} needed, {byte_size(free)} free")


def _failure_text(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else repr(error)


@dataclass(frozen=True)
class Signals:
    """What all workers agree on after a step."""

    stop: Stop
    has_failed: bool
    """Whether a checkpoint could not be written."""
    is_look_due: bool = False
    """Whether all workers look for nodes that are about to leave."""


class Saver:
    """One worker's part in saving; all workers must call each method at the same steps."""

    def __init__(self, folder: AnyPath, rank: int) -> None:
        self._writer = CheckpointWriter(folder) if rank == 0 else None
        self._agreement = Agreement()
        self._scores: list[Mapping[str, Any]] = []
        self._num_reported = 0

    def save(
        self,
        tensors: Mapping[str, Tensor],
        optimizer_state: dict[str, Any],
        info: TrainingInfo,
        unsent: Unsent,
        scores: Mapping[str, Any],
    ) -> None:
        """Starts a checkpoint. All workers gather sharded tensors here.

        Once it is complete, it is reported to Ray Train with its scores.
        """
        self._scores.append(scores)
        gathered = {name: self._gathered(tensor) for name, tensor in tensors.items()}
        optimizer_state = mapped_moments(optimizer_state, self._gathered)
        if self._writer is not None:
            self._writer.save(gathered, optimizer_state, info, unsent())

    def _gathered(self, tensor: Tensor) -> Tensor:
        """Returns the full tensor; at most one gathered tensor is on a device at a time."""
        full = whole(tensor)
        if full is tensor or self._writer is None:
            return tensor
        return full.cpu()

    def before_update(self) -> None:
        """Waits until weights may change."""
        if self._writer is not None:
            self._writer.before_update()

    def after_step(self, stop: Stop, *, is_look_due: bool = False) -> Signals:
        """Reports checkpoints that are complete; exchanges reasons to stop and to look."""
        if self._writer is not None:
            self._writer.poll()
        values = [*self._values(stop), int(is_look_due)]
        return self._acted_on(self._agreement.exchange(values))

    def finish(self) -> Signals:
        """Waits until all checkpoints are written and reported."""
        if self._writer is not None:
            self._writer.wait()
        return self._acted_on(self._agreement.settle([*self._values(Stop.NO), 0]))

    def close(self) -> None:
        """Waits for the checkpoint in progress."""
        if self._writer is not None:
            self._writer.close()

    @property
    def failure(self) -> str:
        """Why a checkpoint was not written; empty on other ranks than 0."""
        return self._writer.failure if self._writer is not None else ""

    def _values(self, stop: Stop) -> list[int]:
        if self._writer is None:
            return [stop, 0, 0]
        return [stop, len(self._writer.written), bool(self._writer.failure)]

    def _acted_on(self, agreed: Sequence[int]) -> Signals:
        stop, num_written, has_failed, is_look_due = agreed
        while self._num_reported < num_written:
            checkpoint = None
            if self._writer is not None:
                path = self._writer.written[self._num_reported]
                checkpoint = ray_checkpoint(path)
                show("xkd_checkpoint_time", time.time(), path.parent.name)
            report_checkpoint(checkpoint, self._scores[self._num_reported])
            self._num_reported += 1
        return Signals(Stop(stop), bool(has_failed), bool(is_look_due))


def ray_checkpoint(path: AnyPath) -> train.Checkpoint:
    """Returns what Ray Train calls a checkpoint."""
    filesystem, path_there = ray_storage(str(path))
    return train.Checkpoint(path_there, filesystem)


def report_checkpoint(
    checkpoint: train.Checkpoint | None, scores: Mapping[str, Any] | None = None
) -> None:
    """Reports a checkpoint in the run's folder to Ray Train."""
    train.report(
        dict(scores or {}),
        checkpoint=checkpoint,
        checkpoint_upload_mode=train.CheckpointUploadMode.NO_UPLOAD,
    )

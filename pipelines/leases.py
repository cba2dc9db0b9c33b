"""A lease: one writer at a time in a folder of a bucket, which has no locks.

Each process that wants the lease writes a claim, an object of its own, and then lists all claims. A
process that sees another claim withdraws its own. Stores list all that was written before (S3, GCS,
Azure and MinIO do), so of two processes at least one sees the other:

    process A   write a, list: [a]   holds         list before each commit: [a]   commits
    process B                        write b, list: [a, b]   withdraws b, says who holds

No conditional writes are needed, which pyarrow does not offer. The holder rewrites its claim every
`RENEW_SECONDS`. A claim that was not rewritten for `LEASE_SECONDS` is over, by the clock of the
store alone; that of a dead process of the same machine is over at once. Whoever takes over gets a
higher number and removes the old claim. An earlier holder that lives after all finds that out
before it commits anything (`check`); only a request that is under way cannot be called back.
"""

import _thread
import json
import logging
import os
import random
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_type_hints

import pyarrow as pa

from pipelines.errors import UserError
from pipelines.redaction import one_line
from pipelines.storage import AnyPath, RemotePath

logger = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
"""A claim that was not renewed for so long is over."""
RENEW_SECONDS = 10.0
_POLL_SECONDS = 1.0
_CLOCK = "clock"
"""Name of the object that is written to read the store's clock."""
_SUFFIX = ".json"


@dataclass(frozen=True)
class Claim:
    """Who holds or wants a lease."""

    token: str
    host: str
    pid: int
    since: str
    machine: str
    """Boot and process namespace: where `pid` means this process."""
    started: str
    """When the process started, which tells it from a later one of the same number."""
    number: int = 1
    """Larger than that of every claim before it."""
    is_held: bool = False
    """Whether the process holds the lease, and does not only ask for it."""

    @classmethod
    def own(cls, number: int) -> "Claim":
        """A new claim of this process."""
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            since=now_text(),
            machine=_machine(),
            started=_started(os.getpid()),
            number=number,
        )

    @classmethod
    def read(cls, text: str) -> "Claim":
        """The claim of a file.

        Raises:
            ValueError: If it is not JSON, or a value has another type.
            TypeError: If it has other keys.
        """
        claim = cls(**json.loads(text))
        if not all(
            isinstance(getattr(claim, name), kind) for name, kind in get_type_hints(cls).items()
        ):
            raise ValueError("a value has another type")
        return claim

    @property
    def is_dead(self) -> bool:
        """Whether its process is known to have ended."""
        return self._is_here and self.started != _started(self.pid)

    @property
    def is_alive(self) -> bool:
        """Whether its process is known to run."""
        return self._is_here and self.started == _started(self.pid)

    @property
    def _is_here(self) -> bool:
        return bool(self.machine) and self.machine == _machine()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


def now_text() -> str:
    """The time of now for messages."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class LeaseLostError(OSError):
    """Another process has taken over."""


class Lease:
    """A held lease, which a thread renews."""

    def __init__(self, folder: RemotePath, claim: Claim) -> None:
        self._folder, self._claim = folder, replace(claim, is_held=True)
        self._file = _file_of(folder, claim.token)
        _write(self._file, self._claim)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._renew_all, daemon=True, name="lease")
        self._thread.start()

    def check(self) -> None:
        """Makes sure that nobody has taken over.

        Raises:
            LeaseLostError: If another process did.
        """
        others = _claims(self._folder, known=self._claim)
        is_there = others.pop(self._claim.token, None) is not None
        later = [o for o in others.values() if o.is_held and o.number >= self._claim.number]
        if later or not is_there:
            who = later[0] if later else "another process"
            raise LeaseLostError(
                f"{who} has taken over, because this one was silent for {LEASE_SECONDS:g} s"
            )

    def release(self) -> None:
        """Lets others write."""
        self._is_over.set()
        self._thread.join()
        with suppress(OSError, pa.ArrowException):  # the claim is over soon in any case
            self._file.unlink(missing_ok=True)

    def _renew_all(self) -> None:
        while not self._is_over.wait(RENEW_SECONDS):
            try:
                self.check()
                _write(self._file, self._claim)
            except LeaseLostError as error:
                logger.warning("%s: %s", self._folder.parent, error)
                # Workers must not go on beside those of the other process. A program of this
                # package stops in order; where SIGTERM has no handler, nothing happens.
                _thread.interrupt_main(signal.SIGTERM)
                return
            except (OSError, pa.ArrowException) as error:
                logger.warning("the lease in %s is not renewed: %s", self._folder, one_line(error))


_held: dict[RemotePath, Lease] = {}
"""Leases of this process by their folders; each protects the folder around it."""


@contextmanager
def leased(folder: RemotePath, what: str, *, patience_seconds: float = 0.0) -> Iterator[None]:
    """Holds the lease whose claims lie in a folder; it protects the folder around it.

    Raises:
        UserError: If another process holds it and still renews it after `patience_seconds`.
    """
    _held[folder] = _acquired(folder, what, patience_seconds)
    try:
        yield
    finally:
        _held.pop(folder).release()


def check_leases(path: AnyPath) -> None:
    """Makes sure before a commit that this process still holds the leases around a path.

    Raises:
        LeaseLostError: If another process has taken one over.
    """
    for folder, lease in list(_held.items()):
        if str(path).startswith(f"{folder.parent}/"):
            lease.check()


def _acquired(folder: RemotePath, what: str, patience_seconds: float) -> Lease:
    give_up_at = time.monotonic() + patience_seconds
    while True:
        claim = Claim.own(_wait_for_others(folder, what, give_up_at) + 1)
        file = _file_of(folder, claim.token)
        _write(file, claim)
        if _claims(folder, known=claim).keys() == {claim.token}:
            return Lease(folder, claim)
        file.unlink(missing_ok=True)
        # Two that came at the same time must not meet again.
        time.sleep(random.uniform(0.2, 2.0) * _POLL_SECONDS)


def _wait_for_others(folder: RemotePath, what: str, give_up_at: float) -> int:
    """Waits until no claim is left, removes those that are over, returns the largest number.

    A process that was killed a moment ago looks like one that lives until it fails to renew.
    """
    first_seen: dict[str, tuple[int, float]] = {}
    number = 0
    has_told = False
    while claims := _claims(folder):
        now = _store_clock(folder)
        for token, claim in claims.items():
            number = max(number, claim.number)
            try:
                modified = _file_of(folder, token).modified()
            except FileNotFoundError:
                continue
            first, since = first_seen.setdefault(token, (modified, time.monotonic()))
            silent = max((now - modified) / 1e9, 0.0 if modified != first else _ago(since))
            if claim.is_dead or silent > LEASE_SECONDS:
                _file_of(folder, token).unlink(missing_ok=True)
            elif (claim.is_alive or modified != first) and time.monotonic() >= give_up_at:
                raise UserError(f"{what} is being written by {claim}; wait for it or end it")
            elif silent > 1.5 * RENEW_SECONDS and not has_told:
                has_told = True
                logger.warning(
                    "%s was written by %s, silent for %.0f s; takes over once that is %g s",
                    *(what, claim, silent, LEASE_SECONDS),
                )
        time.sleep(_POLL_SECONDS)
    return number


def _ago(moment: float) -> float:
    return time.monotonic() - moment


def _file_of(folder: RemotePath, token: str) -> RemotePath:
    return folder / f"{token}{_SUFFIX}"


def _claims(folder: RemotePath, known: Claim | None = None) -> dict[str, Claim]:
    """Reads all claims by token, but for one that is known."""
    found = {}
    for file in folder.glob(f"*{_SUFFIX}"):
        if known is not None and file.stem == known.token:
            found[file.stem] = known
            continue
        try:
            found[file.stem] = Claim.read(file.read_text())
        except FileNotFoundError:
            continue
        except (ValueError, TypeError):  # of another version, or garbage
            found[file.stem] = Claim(file.stem, "an unknown host", 0, "an unknown time", "", "")
    return found


def _write(file: RemotePath, claim: Claim) -> None:
    file.write_bytes(json.dumps(asdict(claim)).encode())


def _store_clock(folder: RemotePath) -> int:
    """Returns the time of the store in nanoseconds, or 0 if it keeps none."""
    clock = folder / _CLOCK
    clock.write_bytes(b"the clock of the store\n")
    return clock.modified()


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in ticks since the boot; empty if it does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    # A zombie has ended: nobody has asked for its exit code yet.
    return "" if fields[0] in ("Z", "X") else fields[19]

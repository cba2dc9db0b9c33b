"""Confines a process before it reads untrusted bytes.

There are two steps, because the process forks decoders. `confine` removes access to files, the
network, other processes, privileges and disk space, but still allows forking. `lock` follows in the
forked decoder, which can then only read open descriptors, compute, and answer.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.media.decoder import seccomp

Sandbox = Literal["required", "best"]

_libc = ctypes.CDLL(None, use_errno=True)

_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
_LANDLOCK_VERSION = 1
_LANDLOCK_FILES = {1: 1 << 13, 2: 1 << 14, 3: 1 << 15, 5: 1 << 16}
"""First bit beyond the rights to access files, by version of Landlock's interface."""
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION = 0x20080522
_PR_SET_PDEATHSIG = 1
MAX_DESCRIPTORS = 32


@dataclass(frozen=True)
class Confinement:
    """The means of confinement that the kernel offers."""

    seccomp: bool
    landlock: int
    """Version of Landlock's interface; 0 if unavailable."""

    @property
    def is_full(self) -> bool:
        """Whether all means are available."""
        return self.seccomp and self.landlock > 0

    def __str__(self) -> str:
        if self.is_full:
            return f"confined (seccomp, Landlock ABI {self.landlock})"
        if self.seccomp:
            return "confined by seccomp alone, because this kernel has no Landlock"
        if self.landlock:
            return (
                f"confined by Landlock ABI {self.landlock} alone, because this kernel or container "
                "allows no seccomp filter: the network and other processes can be reached"
            )
        return (
            f"not confined, because this {'kernel or container' if _IS_LINUX else 'system'} "
            "has neither seccomp nor Landlock: a hostile file could do what you can"
        )


_IS_LINUX = sys.platform == "linux"


def available() -> Confinement:
    """Returns the means of confinement here, without using them."""
    if not _IS_LINUX:
        return Confinement(seccomp=False, landlock=0)
    version = _libc.syscall(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION)
    return Confinement(seccomp=seccomp.is_available(), landlock=max(0, version))


def confine(max_memory_bytes: int) -> Confinement:
    """Removes access of this process to files, the network, privileges and disk space.

    Args:
        max_memory_bytes: Address space that it and each of its forks may use in addition.

    Returns:
        The means of confinement in use; `lock` completes them.
    """
    found = available()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_DESCRIPTORS, MAX_DESCRIPTORS))
    # Limits writes to files, not to mapped memory.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    statm = Path("/proc/self/statm")
    if statm.exists():
        most = int(statm.read_text().split()[0]) * resource.getpagesize() + max_memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if not _IS_LINUX:
        return found
    seccomp.forbid_new_privileges()
    _drop_capabilities()
    if found.landlock and not _forbid_files(found.landlock):
        return Confinement(found.seccomp, 0)
    return found


def lock() -> None:
    """Limits a forked single-threaded process to reading, computing and answering.

    Raises:
        OSError: If the kernel refuses.
    """
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    seccomp.install()


def die_with_parent() -> None:
    """Ends this process when the thread that forked it ends."""
    if _IS_LINUX:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _drop_capabilities() -> None:
    """Removes the privileges of root. A failure is harmless, because seccomp follows."""
    number = _CAPSET.get(os.uname().machine)
    if number is not None:
        header = struct.pack("<Ii", _CAPABILITY_VERSION, 0)
        _libc.syscall(number, header, bytes(24))


def _forbid_files(version: int) -> bool:
    """Denies all files, TCP, and outside sockets and processes; returns whether it succeeded."""
    files = max(bits for since, bits in _LANDLOCK_FILES.items() if since <= version) - 1
    rules = struct.pack("<Q", files)
    if version >= 4:
        rules += struct.pack("<Q", 0b11)  # bind and connect
    if version >= 6:
        rules += struct.pack("<Q", 0b11)  # abstract sockets, signals
    ruleset = _libc.syscall(_LANDLOCK_CREATE, rules, len(rules), 0)
    if ruleset < 0:
        return False
    try:
        return bool(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def check_required(sandbox: Sandbox, found: Confinement) -> None:
    """Checks that confinement is complete if it is required.

    Raises:
        SandboxError: If it is not.
    """
    if sandbox == "required" and not found.is_full:
        raise SandboxError(
            f"decoder.sandbox (required) needs seccomp and Landlock, but the decoder is {found}; "
            "use Linux 5.13 or newer, or decoder.sandbox=best",
        )


class SandboxError(OSError):
    """Raised if the required confinement is not available."""

"""A seccomp filter that allows a decoder only the system calls that it needs.

The kernel runs the filter, a small program, at each system call (`man 2 seccomp`), on x86-64 and
64-bit Arm. Calls that are not on the list fail with `EPERM`, so that libraries that merely probe
them continue. Calls that no decoder makes for any file kill the process at once, because only an
attacker would make them.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

_libc = ctypes.CDLL(None, use_errno=True)

_ALLOWED = {  # name: (number on x86-64, number on 64-bit Arm); None if there is none
    # reading open files; nothing can be opened
    **{"read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66)},
    **{"pread64": (17, 67), "lseek": (8, 62), "close": (3, 57), "fstat": (5, 80)},
    # descriptors that the parent sends over the socket
    **{"recvmsg": (47, 212), "dup": (32, 23)},
    # memory
    **{"munmap": (11, 215), "mremap": (25, 216), "brk": (12, 214), "madvise": (28, 233)},
    # time, waiting, and the C library's queries about the process
    **{"clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169)},
    **{"clock_nanosleep": (230, 115), "nanosleep": (35, 101), "poll": (7, None)},
    **{"ppoll": (271, 73), "futex": (202, 98), "sched_yield": (24, 124)},
    **{"sched_getaffinity": (204, 123), "getrandom": (318, 278)},
    **{"getpid": (39, 172), "gettid": (186, 178), "restart_syscall": (219, 128)},
    # signals to the process itself
    **{"rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139)},
    "sigaltstack": (131, 132),
    **{"exit": (60, 93), "exit_group": (231, 94)},
}
_DEADLY = {
    # other programs, memory of other processes
    **{"execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117)},
    **{"process_vm_readv": (310, 270), "process_vm_writev": (311, 271)},
    **{"pidfd_getfd": (438, 438), "process_madvise": (440, 440)},
    # parts of the kernel that are often attacked
    **{"bpf": (321, 280), "userfaultfd": (323, 282), "perf_event_open": (298, 241)},
    **{"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)},
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219)},
    # namespaces and mounts
    **{"mount": (165, 40), "unshare": (272, 97), "setns": (308, 268), "pivot_root": (155, 41)},
    **{"init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104)},
}
_MMAP, _MPROTECT = (9, 222), (10, 226)
_FCNTL = (72, 25)
_CLONE3 = (435, 435)
_FCNTL_COMMANDS = (0, 1, 2, 3, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC. Others send signals, lock or seal."""

_PROT_EXEC = 4
_X32 = 0x40000000
"""Numbers from here on are calls of the x32 interface of x86-64."""
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_AT_NUMBER, _AT_MACHINE, _AT_ARGUMENTS = 0, 4, 16
_SET_MODE_FILTER, _GET_ACTION_AVAIL = 1, 2
_PR_SET_NO_NEW_PRIVS = 38


@dataclass(frozen=True)
class Machine:
    """The properties of a processor architecture."""

    column: int
    audit_name: int
    seccomp: int
    """Number of the system call `seccomp`."""


MACHINES = {
    "x86_64": Machine(0, 0xC000003E, 317),
    "aarch64": Machine(1, 0xC00000B7, 277),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def is_available() -> bool:
    """Returns whether the kernel and the container allow filters."""
    machine = _machine()
    if machine is None:
        return False
    action = ctypes.c_uint32(_KILL)
    return bool(_libc.syscall(machine.seccomp, _GET_ACTION_AVAIL, 0, ctypes.byref(action)) == 0)


def install() -> None:
    """Filters the system calls of this thread, which must be the only one, from now on.

    Raises:
        OSError: If the kernel refuses.
    """
    machine = _machine()
    if machine is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    forbid_new_privileges()
    program = compiled(machine)
    code = ctypes.create_string_buffer(program, len(program))
    header = _Program(len(program) // 8, ctypes.addressof(code))
    if _libc.syscall(machine.seccomp, _SET_MODE_FILTER, 0, ctypes.byref(header)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def forbid_new_privileges() -> None:
    """Prevents programs that this process starts from gaining privileges.

    Raises:
        OSError: If the kernel refuses.
    """
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _machine() -> Machine | None:
    if sys.platform != "linux" or sys.byteorder != "little" or sys.maxsize < 1 << 32:
        return None
    return MACHINES.get(platform.machine())


@cache
def compiled(machine: Machine) -> bytes:
    """Returns the filter: killed, then allowed calls, then those that depend on an argument."""

    def number(pair: Sequence[int | None]) -> int | None:
        return pair[machine.column]

    steps = [_step(_LOAD, _AT_MACHINE), _step(_EQUAL, machine.audit_name, 1, 0)]
    steps += [_step(_RETURN, _KILL), _step(_LOAD, _AT_NUMBER)]
    if machine.column == 0:
        steps += [_step(_AT_LEAST, _X32, 0, 1), _step(_RETURN, _KILL)]
    for pairs, answer in ((_ALLOWED, _ALLOW), (_DEADLY, _KILL)):
        for pair in pairs.values():
            if (call := number(pair)) is not None:
                steps += [_step(_EQUAL, call, 0, 1), _step(_RETURN, answer)]
    # Without `clone3`, the C library falls back to `clone`, and a decoder works without threads.
    steps += _when(number(_CLONE3), [_step(_RETURN, _ERROR | errno.ENOSYS)])
    for pair in (_MMAP, _MPROTECT):
        steps += _when(number(pair), [*_argument(2), *_unless_bits(_PROT_EXEC)])
    allowed = [
        _step(_EQUAL, command, len(_FCNTL_COMMANDS) - at, 0)
        for at, command in enumerate(_FCNTL_COMMANDS)
    ]
    steps += _when(
        number(_FCNTL),
        [*_argument(1), *allowed, _step(_RETURN, _ERROR | errno.EPERM), _step(_RETURN, _ALLOW)],
    )
    return b"".join([*steps, _step(_RETURN, _ERROR | errno.EPERM)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Encodes one instruction. Jumps count the instructions to skip."""
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _when(call: int | None, steps: list[bytes]) -> list[bytes]:
    """Runs steps for one system call; the last step returns."""
    return [_step(_EQUAL, -1 % (1 << 32) if call is None else call, 0, len(steps)), *steps]


def _argument(index: int) -> list[bytes]:
    """Loads the lower half of an argument, which holds an `int`."""
    return [_step(_LOAD, _AT_ARGUMENTS + 8 * index)]


def _unless_bits(bits: int) -> list[bytes]:
    return [
        _step(_ANY_BIT, bits, 0, 1),
        _step(_RETURN, _ERROR | errno.EPERM),
        _step(_RETURN, _ALLOW),
    ]

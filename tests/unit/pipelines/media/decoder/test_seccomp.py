import re
from pathlib import Path

import pytest

from pipelines.media.decoder import sandbox, seccomp

ARM = {  # include/uapi/asm-generic/unistd.h of Linux, which 64-bit Arm uses as it is
    **{"dup": 23, "fcntl": 25, "mount": 40, "pivot_root": 41, "close": 57, "lseek": 62},
    **{"read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67, "ppoll": 73},
    **{"fstat": 80, "exit": 93, "exit_group": 94, "unshare": 97, "futex": 98, "nanosleep": 101},
    **{"kexec_load": 104, "init_module": 105, "clock_gettime": 113, "clock_getres": 114},
    **{"clock_nanosleep": 115, "ptrace": 117, "sched_getaffinity": 123, "sched_yield": 124},
    **{"restart_syscall": 128, "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135},
    **{"rt_sigreturn": 139, "gettimeofday": 169, "getpid": 172, "gettid": 178, "recvmsg": 212},
    **{"brk": 214, "munmap": 215, "mremap": 216, "add_key": 217, "request_key": 218},
    **{"keyctl": 219, "execve": 221, "mmap": 222, "mprotect": 226, "madvise": 233},
    **{"perf_event_open": 241, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271},
    **{"finit_module": 273, "getrandom": 278, "bpf": 280, "execveat": 281, "userfaultfd": 282},
    **{"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "clone3": 435},
    **{"pidfd_getfd": 438, "process_madvise": 440},
}
TABLE = {
    **seccomp._ALLOWED,
    **seccomp._DEADLY,
    **{"mmap": seccomp._MMAP, "mprotect": seccomp._MPROTECT, "fcntl": seccomp._FCNTL},
    "clone3": seccomp._CLONE3,
}


def test_the_numbers_of_64_bit_arm_are_those_of_the_kernel():
    of_arm = {name: pair[1] for name, pair in TABLE.items() if pair[1] is not None}
    assert of_arm == ARM
    # What other kernels have besides has a successor on the list.
    assert {name for name, pair in TABLE.items() if pair[1] is None} == {"poll"}


HEADERS = (
    "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "/usr/include/asm-generic/unistd.h",
)


@pytest.mark.parametrize(("column", "header"), enumerate(HEADERS))
def test_the_numbers_are_those_of_the_headers_that_are_installed(column, header):
    if not Path(header).exists():
        pytest.skip(f"{header} is not there; Debian has it in linux-libc-dev")
    defined = re.findall(
        r"^#define\s+__NR(?:3264)?_(\w+)\s+(\d+)$", Path(header).read_text(), re.MULTILINE
    )
    numbers = {name: int(number) for name, number in defined}
    assert {name: pair[column] for name, pair in TABLE.items()} == {
        name: numbers.get(name) for name in TABLE
    }
    machine = list(seccomp.MACHINES.values())[column]
    assert (machine.column, machine.seccomp) == (column, numbers["seccomp"])
    name = list(seccomp.MACHINES)[column]
    assert sandbox._CAPSET[name] == numbers["capset"]
    landlock = (sandbox._LANDLOCK_CREATE, sandbox._LANDLOCK_RESTRICT)
    assert landlock == (numbers["landlock_create_ruleset"], numbers["landlock_restrict_self"])


@pytest.mark.parametrize("column", [0, 1])
def test_no_number_stands_for_two_calls(column):
    numbers = [pair[column] for pair in TABLE.values() if pair[column] is not None]
    assert len(set(numbers)) == len(numbers)
    assert not seccomp._ALLOWED.keys() & seccomp._DEADLY.keys()


@pytest.mark.parametrize("name", seccomp.MACHINES)
def test_the_filter_of_each_machine_answers_each_call_as_the_table_says(name):
    """The filter is run here, so that the machine need not be there."""
    machine = seccomp.MACHINES[name]
    answers = dict.fromkeys(seccomp._ALLOWED, seccomp._ALLOW)
    answers |= dict.fromkeys(seccomp._DEADLY, seccomp._KILL)
    for call, answer in answers.items():
        number = TABLE[call][machine.column]
        if number is not None:
            assert run(machine, number) == answer, call
    by_name = {"x86_64": (2, 4, 5, 257, 262, 332), "aarch64": (56, 79, 291)}[name]
    for number in by_name:  # open, stat and their kin; 5 is `fstat`, by descriptor
        is_fstat = (name, number) == ("x86_64", 5)
        assert run(machine, number) == (seccomp._ALLOW if is_fstat else seccomp._ERROR | 1)
    mmap = TABLE["mmap"][machine.column]
    assert run(machine, mmap, (0, 4096, 3)) == seccomp._ALLOW
    assert run(machine, mmap, (0, 4096, 7)) == seccomp._ERROR | 1
    other = next(each for each in seccomp.MACHINES.values() if each is not machine)
    assert run(machine, 0, audit_name=other.audit_name) == seccomp._KILL


def run(machine, number, arguments=(), audit_name=None):
    """What the kernel makes of the program for a call."""
    import struct

    data = struct.pack("<IIQ", number, audit_name or machine.audit_name, 0)
    data += b"".join(struct.pack("<Q", argument) for argument in (*arguments, *[0] * 6))
    steps = list(struct.iter_unpack("<HBBI", seccomp.compiled(machine)))
    at = value = 0
    while True:
        code, if_true, if_false, operand = steps[at]
        at += 1
        if code == seccomp._RETURN:
            return operand
        if code == seccomp._LOAD:
            (value,) = struct.unpack_from("<I", data, operand)
            continue
        is_true = {
            seccomp._EQUAL: value == operand,
            seccomp._AT_LEAST: value >= operand,
            seccomp._ANY_BIT: bool(value & operand),
        }[code]
        at += if_true if is_true else if_false

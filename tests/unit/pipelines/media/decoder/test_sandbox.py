"""An attacker instead of a decoder: every attempt fails and costs only its own file.

The files are Python programs that the decoder runs, as it would run what a file smuggles in.
"""

import json
import os
import subprocess
import sys
import sysconfig
import time

import pytest

from pipelines.media.container import DecodeError
from pipelines.media.decoder.process import DecoderProcess
from pipelines.media.decoder.sandbox import Confinement, SandboxError, available, check_required
from tests.helpers.media import DECODE_SHORT, write_numbered

pytestmark = pytest.mark.skipif(
    not available().is_full, reason="this kernel has no seccomp or no Landlock"
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_numbered(tmp_path_factory.mktemp("good") / "clip.mp4", 50)


@pytest.fixture
def owned(monkeypatch):
    """Makes decoders that are in the hands of their files."""
    monkeypatch.setattr("pipelines.media.decoder.template.MODULE", "tests.helpers.owned_decoder")
    monkeypatch.setenv("XKD_TEST_SECRET", "hunter2")
    decoders = []

    def new(**settings):
        chosen = {"max_memory_bytes": 500_000_000, "timeout_seconds": 20.0} | settings
        decoders.append(DecoderProcess(**chosen))
        return decoders[-1]

    yield new
    for decoder in decoders:
        decoder.close()


def run(decoder, folder, program):
    """What comes of a file that is a program."""
    path = folder / "attack.mp4"
    path.write_text("# attack\nimport ctypes, os\n" + program)
    try:
        return list(decoder.segments(str(path), **DECODE_SHORT))
    except DecodeError as error:
        return error


def check_good(decoder, clip):
    """The next file is decoded as if nothing had been."""
    assert len(list(decoder.segments(str(clip), **DECODE_SHORT))) == 2


SYSCALL = """
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(ctypes.c_long(number), *arguments) == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
"""
REFUSED = {
    "reads a file": "open({secret!r}).read()",
    "reads the home folder": "os.listdir(os.path.expanduser('~'))",
    "lists the root": "os.listdir('/')",
    "looks at a file": "os.stat({secret!r})",
    "reads the accounts": "open('/etc/passwd')",
    "reads its own memory by name": "open('/proc/self/mem', 'r+b')",
    "reads its parent's environment": "open('/proc/{parent}/environ', 'rb')",
    "reads the job's environment": "open('/proc/{job}/environ', 'rb')",
    "reads the job's memory": "open('/proc/{job}/mem', 'rb')",
    "reads the job's descriptors": "os.listdir('/proc/{job}/fd')",
    "writes a file": "open({target!r}, 'w')",
    "makes a folder": "os.mkdir({target!r})",
    "removes a file": "os.unlink({secret!r})",
    "renames a file": "os.rename({secret!r}, {target!r})",
    "links a file": "os.symlink({secret!r}, {target!r})",
    "cuts a file": "os.truncate({secret!r}, 0)",
    "changes rights": "os.chmod({secret!r}, 0o777)",
    "writes into its file": "os.write(file, b'x')",
    "has another file in memory": "os.memfd_create('x')",
    "lets the memory grow": "os.ftruncate(memory.file, 1 << 40)",
    "lets the memory shrink": "os.ftruncate(memory.file, 0)",
    "writes into the memory as a file": "os.pwrite(memory.file, b'x', 0)",
    "fills the disk": "os.posix_fallocate(memory.file, 0, 1 << 40)",
    "seals the memory": "import fcntl; fcntl.fcntl(memory.file, fcntl.F_ADD_SEALS, 8)",
    "has signals sent": "import fcntl; fcntl.fcntl(channel, fcntl.F_SETOWN, {job})",
    "opens a connection": "import socket; socket.create_connection(('127.0.0.1', {port}))",
    "opens a unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "opens a netlink socket": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "makes a pair of sockets": "import socket; socket.socketpair()",
    "sends a descriptor": "import socket; socket.send_fds(channel, [b'x'], [file])",
    "forks": "os.fork()",
    "starts a thread": "import _thread; _thread.start_new_thread(print, ())",
    "signals its parent": "os.kill(os.getppid(), 9)",
    "signals the job": "os.kill({job}, 15)",
    "signals everybody": "os.kill(-1, 9)",
    "holds on to a process": "os.pidfd_open({job})",
    "raises a limit": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "changes a limit of the job": "import resource; resource.prlimit({job}, 7, (9, 9))",
    "becomes another user": "os.setuid(0)",
    "changes the root": "os.chroot('/')",
    "has the job's terminal": "import fcntl; fcntl.ioctl(0, 0x5412, b'x')",
    "has code of its own": "import mmap; mmap.mmap(-1, 4096, prot=7)",
    "makes memory code": SYSCALL + "call({mprotect}, ctypes.c_void_p(id(call) & ~4095), 4096, 7)",
    "shares memory by key": SYSCALL + "call({shmget}, 1, 4096, 0o1777)",
    "forks by the newest call": SYSCALL + "call(435, None, 0)",
    "looks at a file by the newest call": SYSCALL
    + "call({statx}, -100, ctypes.c_char_p({secret!r}.encode()), 0, 0xfff, bytes(256))",
    "looks whether a file exists": SYSCALL
    + "call({newfstatat}, -100, ctypes.c_char_p({secret!r}.encode()), bytes(256), 0)",
    "looks at a file as if it were open": SYSCALL
    + "call({newfstatat}, -100, ctypes.c_char_p({secret!r}.encode()), bytes(256), 0x1000)",
    "looks whether there is no file": SYSCALL
    + "call({newfstatat}, -100, ctypes.c_char_p({target!r}.encode()), bytes(256), 0x1000)",
    "loads a library": "ctypes.CDLL('libcrypt.so.1')",
}
"""What fails with an error, so that the decoder lives on."""
DEADLY = {
    "executes a program": "os.execv('/bin/sh', ['sh'])",
    "executes a descriptor": "os.execve(file, ['x'], {{}})",
    "traces itself": SYSCALL + "call({ptrace}, 0, 0, None, None)",
    "traces the job": SYSCALL + "call({ptrace}, 16, {job}, None, None)",
    "reads another's memory": SYSCALL + "call({vm_readv}, {job}, None, 0, None, 0, 0)",
    "writes another's memory": SYSCALL + "call({vm_readv} + 1, {job}, None, 0, None, 0, 0)",
    "sets up a ring": SYSCALL + "call(425, 8, None)",
    "loads a filter into the kernel": SYSCALL + "call({bpf}, 0, None, 0)",
    "leaves its namespaces": SYSCALL + "call({unshare}, 0x10000000)",
    "asks for keys": SYSCALL + "call({keyctl}, 0, -3, 1)",
    "steals a descriptor": SYSCALL + "call(438, 3, 0, 0)",
}
"""What ends the decoder at once."""
NUMBERS = {
    "x86_64": {
        **{"mprotect": 10, "shmget": 29, "ptrace": 101, "vm_readv": 310, "bpf": 321},
        **{"unshare": 272, "keyctl": 250, "newfstatat": 262, "statx": 332},
    },
    "aarch64": {
        **{"mprotect": 226, "shmget": 194, "ptrace": 117, "vm_readv": 270, "bpf": 280},
        **{"unshare": 97, "keyctl": 219, "newfstatat": 79, "statx": 291},
    },
}


@pytest.fixture
def names(tmp_path, listener):
    secret = tmp_path / "secret.txt"
    secret.write_text("hunter2")
    return {
        "secret": str(secret),
        "target": str(tmp_path / "target"),
        "job": os.getpid(),
        "parent": os.getpid(),
        "port": listener,
        **NUMBERS[os.uname().machine],
    }


@pytest.fixture(scope="module")
def listener():
    """A server that an attacker could reach if it could reach anything."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_whatever_an_attacker_tries_is_refused(owned, tmp_path, names, clip):
    """In one test, because each attempt takes milliseconds and a decoder's start a second."""
    decoder = owned()
    for what, attempt in REFUSED.items():
        program = (
            attempt.format(**names)
            if not attempt.startswith(SYSCALL)
            else SYSCALL + attempt.removeprefix(SYSCALL).format(**names)
        )
        outcome = run(decoder, tmp_path, program)
        assert isinstance(outcome, DecodeError), what
        assert outcome.reason == "undecodable", (what, outcome.message)
        assert "Error" in outcome.message, (what, outcome.message)
        assert "FileNotFound" not in outcome.message, (what, outcome.message)
        assert "NameError" not in outcome.message, (what, outcome.message)
        check_good(decoder, clip)
    assert (tmp_path / "secret.txt").read_text() == "hunter2"
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("what", DEADLY)
def test_what_no_decoder_does_ends_it_at_once(owned, tmp_path, names, clip, what):
    decoder = owned()
    attempt = DEADLY[what]
    head = SYSCALL if attempt.startswith(SYSCALL) else ""
    outcome = run(decoder, tmp_path, head + attempt.removeprefix(head).format(**names))
    assert isinstance(outcome, DecodeError)
    assert outcome.reason == "decoder_crashed"
    assert "SIGSYS" in outcome.message
    check_good(decoder, clip)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="only x86-64 has them")
def test_calls_of_programs_with_short_pointers_end_the_decoder(owned, tmp_path, clip):
    decoder = owned()
    outcome = run(decoder, tmp_path, SYSCALL + "call(0x40000000 | 39)")
    assert "SIGSYS" in outcome.message
    check_good(decoder, clip)


def test_secrets_of_the_environment_do_not_reach_the_decoder(owned, tmp_path):
    program = "raise ValueError(','.join(sorted(os.environ)))"
    outcome = run(owned(), tmp_path, program)
    assert "PYTHONPATH" in outcome.message
    for name in ("XKD_TEST_SECRET", "HOME", "PATH", "AWS"):
        assert name not in outcome.message.removeprefix("ValueError").replace("PYTHONPATH", "")


def test_a_decoder_has_its_socket_its_memory_and_its_file_and_no_other_descriptor(owned, tmp_path):
    """Nothing of the job is inherited, such as connections to servers."""
    program = """
import fcntl
found = []
for number in range(200):
    try:
        fcntl.fcntl(number, fcntl.F_GETFL)
    except OSError:
        continue
    found.append(number)
own = {0, 1, 2, channel.fileno(), memory.file, file}
raise ValueError(f"beside: {sorted(set(found) - own)}")
"""
    secret = open(tmp_path / "inherited", "w")  # noqa: SIM115
    os.set_inheritable(secret.fileno(), True)
    try:
        outcome = run(owned(), tmp_path, program)
    finally:
        secret.close()
    assert outcome.message == "ValueError: beside: []"


def test_a_file_leaves_nothing_to_poison_for_the_next(owned, tmp_path, clip):
    poison = """
def nothing(file, **settings):
    return iter(())
child.decode_segments = nothing
segments = ()
"""
    decoder = owned()
    assert run(decoder, tmp_path, poison) == []
    check_good(decoder, clip)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("while True: pass", "decoder_timeout"),
        ("os.close(channel.fileno())\nwhile True: pass", "decoder_crashed"),
        ("os.write(channel.fileno(), b'\\0')\nwhile True: pass", "decoder_timeout"),
        ("x = bytearray(1 << 40)", "out_of_memory"),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", "out_of_memory"),
        ("ctypes.string_at(0)", "decoder_crashed"),
        ("os._exit(3)", "decoder_crashed"),
        ("os.abort()", "decoder_crashed"),
    ],
)  # fmt: skip
def test_a_file_that_hangs_dies_or_swells_costs_itself(owned, tmp_path, clip, program, reason):
    # A busy machine takes a while to fill the memory.
    decoder = owned(timeout_seconds=2.0 if reason == "decoder_timeout" else 50.0)
    began = time.monotonic()
    outcome = run(decoder, tmp_path, program)
    assert isinstance(outcome, DecodeError)
    assert outcome.reason in {reason, "undecodable"}
    assert (outcome.reason == reason) or "MemoryError" in outcome.message
    assert time.monotonic() - began < 60
    check_good(decoder, clip)


REPAIRS = {"clock_leaps": 0, "sound_gaps": 0, "bridged_gaps": 0, "rebased_clocks": 0}
REPAIRS |= {"held_picture": 0, "picture_gaps": 0}
HONEST = {
    "start_seconds": 0.0,
    "duration_seconds": 1.0,
    "frames": [8, 24, 32, 3],
    "samples": 16_000,
    "decode_errors": 0,
    "repairs": REPAIRS,
    "info": {
        "container": "avi",
        "video_codec": "mpeg4",
        "audio_codec": None,
        "native_width": 64,
        "native_height": 48,
        "native_rate": 25.0,
        "rotation": 0,
        "is_mirrored": False,
        "declares_picture": True,
        "declares_sound": False,
        "stream_offset_seconds": 0.0,
        "duration_seconds": 2.0,
    },
}


def lie_with(**changes):
    return HONEST | changes


def lie_with_info(**changes):
    return HONEST | {"info": HONEST["info"] | changes}


LIES = [
    [],
    "text",
    {},
    None,
    7,
    {"error": "undecodable"},
    {"error": "duplicate", "message": ""},
    {"error": "no such reason", "message": ""},
    {"error": "undecodable", "message": 5},
    {"error": ["undecodable"], "message": ""},
    lie_with(frames=[5, 5, 5, 3]),
    lie_with(frames=[8, -24, -32, 3]),
    lie_with(frames=[8, 24, 1 << 50, 3]),
    lie_with(frames=[8, 0, 32, 3]),
    lie_with(frames=[8, 24, 32, 4]),
    lie_with(frames=[8, 24, 32]),
    lie_with(frames="8243"),
    lie_with(frames=[8.0, 24.0, 32.0, 3.0]),
    lie_with(frames=[8, True, 32, 3]),
    lie_with(frames=[8, 64, 64, 3]),
    lie_with(frames=None, samples=0),
    lie_with(samples=-1),
    lie_with(samples=1 << 40),
    lie_with(samples=15_000),
    lie_with(samples=None),
    lie_with(start_seconds=-1.0),
    lie_with(start_seconds="0"),
    lie_with(start_seconds=1e300),
    lie_with(duration_seconds=0.0),
    lie_with(duration_seconds=2.0, frames=[16, 24, 32, 3], samples=32_000),
    lie_with(duration_seconds=[1.0]),
    lie_with(decode_errors=-1),
    lie_with(decode_errors=1 << 70),
    lie_with(decode_errors=None),
    lie_with(repairs={}),
    lie_with(repairs=None),
    lie_with_info(declares_sound=1),
    lie_with(info=None),
    lie_with(info=[]),
    lie_with(info={}),
    lie_with_info(container="a" * 5000),
    lie_with_info(container="\x1b[2J"),
    lie_with_info(container="\ud800"),
    lie_with_info(container=None),
    lie_with_info(video_codec=5),
    lie_with_info(native_width=1 << 70),
    lie_with_info(native_width=1.5),
    lie_with_info(native_rate="25"),
    lie_with_info(rotation=1 << 40),
    lie_with_info(more=1),
    lie_with(repairs=None),
    lie_with(repairs={}),
    lie_with(repairs=REPAIRS | {"sound_gaps": "3"}),
]
RAW_LIES = [
    "NaN",
    json.dumps(lie_with(start_seconds=0)).replace('"start_seconds": 0', '"start_seconds": NaN'),
    json.dumps(lie_with(start_seconds=0)).replace(
        '"start_seconds": 0', '"start_seconds": Infinity'
    ),
    json.dumps(lie_with(start_seconds=0)).replace('"start_seconds": 0', '"start_seconds": 1e999'),
    "[" * 15_000,
    "1" * 10_000,
    "{",
    "\\xff\\xfe",
    "",
]


def test_a_lie_costs_one_file(owned_module, tmp_path, clip):
    for text in [*map(json.dumps, LIES), *RAW_LIES]:
        program = f"""
text = {text!r}.encode()
os.write(channel.fileno(), len(text).to_bytes(4, "big") + text)
os.read(channel.fileno(), 1)
"""
        outcome = run(owned_module, tmp_path, program)
        assert isinstance(outcome, DecodeError), text
        assert outcome.reason == "decoder_crashed", text
        assert "nonsense" in outcome.message, text
        check_good(owned_module, clip)


@pytest.fixture(scope="module")
def owned_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.media.decoder.template.MODULE", "tests.helpers.owned_decoder")
        decoder = DecoderProcess(max_memory_bytes=500_000_000, timeout_seconds=20.0)
        yield decoder
        decoder.close()


def say(*headers):
    """A program that gives answers, and waits until each is taken."""
    return "import json\n" + "".join(
        f"""
text = {json.dumps(header)!r}.encode()
os.write(channel.fileno(), len(text).to_bytes(4, "big") + text)
os.read(channel.fileno(), 1)
"""
        for header in headers
    )


def test_an_honest_answer_is_believed(owned_module, tmp_path):
    """So that the lies are refused for what is false in them."""
    (segment,) = run(owned_module, tmp_path, say(HONEST))
    assert segment.frames.shape == (8, 24, 32, 3)
    assert segment.info.container == "avi"


@pytest.mark.parametrize(
    "lie",
    [
        say(HONEST, HONEST),
        say(HONEST, lie_with(start_seconds=0.5)),
        "os.write(channel.fileno(), b'\\xff\\xff\\xff\\xff')",
    ],
)
def test_segments_that_overlap_and_endless_headers_are_lies(owned_module, tmp_path, clip, lie):
    outcome = run(owned_module, tmp_path, lie)
    assert isinstance(outcome, DecodeError)
    assert "nonsense" in outcome.message
    check_good(owned_module, clip)


def test_no_more_seconds_are_believed_than_allowed(owned, tmp_path):
    path = tmp_path / "attack.mp4"
    many = [lie_with(start_seconds=float(second)) for second in range(20)]
    path.write_text("# attack\nimport os\n" + say(*many))
    with pytest.raises(DecodeError, match="more seconds than allowed"):
        list(owned().segments(str(path), max_seconds=10.0, **DECODE_SHORT))


def test_what_is_said_of_a_failure_can_be_printed(owned_module, tmp_path):
    message = "\x1b[2J\n\u202e\ud800" + "x" * 5000
    outcome = run(owned_module, tmp_path, say({"error": "undecodable", "message": message}))
    assert outcome.message.isprintable()
    assert len(outcome.message) <= 300
    outcome.message.encode()


def test_a_decoder_on_a_kernel_that_confines_nothing_works_unless_it_is_required(monkeypatch, clip):
    monkeypatch.setattr("pipelines.media.decoder.template.MODULE", "tests.helpers.bare_decoder")
    decoder = DecoderProcess(max_memory_bytes=500_000_000, timeout_seconds=20.0)
    check_good(decoder, clip)
    assert decoder.start() == Confinement(False, 0)
    decoder.close()
    decoder = DecoderProcess(max_memory_bytes=500_000_000, timeout_seconds=20.0, sandbox="required")
    with pytest.raises(SandboxError, match=r"decoder.sandbox \(required\) needs seccomp"):
        check_good(decoder, clip)


@pytest.mark.parametrize("found", [Confinement(False, 0), Confinement(True, 0),
                                   Confinement(False, 7)])  # fmt: skip
def test_required_names_what_is_missing_and_best_does_not_mind(found):
    check_required("best", found)
    check_required("required", Confinement(True, 1))
    with pytest.raises(SandboxError, match=r"because this .* (no|neither|has)"):
        check_required("required", found)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    "starter",
    [
        (),
        ("/usr/bin/setpriv", "--no-new-privs", "PYTHON"),
        ("/usr/bin/unshare", "--user", "--map-root-user", "--mount", "PYTHON"),
    ],
    ids=["plain", "no_new_privs", "namespaces"],
)
def test_an_ordinary_user_is_confined_as_well(clip, starter):
    if starter and not os.path.exists(starter[0]):
        pytest.skip(f"no {starter[0]}")
    program = (
        "import os, sys\n"
        "from pipelines.media.decoder.process import DecoderProcess\n"
        "decoder = DecoderProcess(max_memory_bytes=10**9, timeout_seconds=60.0,\n"
        "    sandbox='required')\n"
        f"print(len(list(decoder.segments('/dev/fd/0', **{DECODE_SHORT!r}))), decoder.start())\n"
    )
    done = as_ordinary_user(*starter, "-c", program, clip=clip)
    assert done.stdout.startswith("2 confined (seccomp, Landlock"), done.stderr


def as_ordinary_user(*command, clip):
    """Runs a Python program as nobody, with a Python that nobody may run."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    paths = [os.getcwd(), sysconfig.get_path("purelib")]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    user = {"user": 65534, "group": 65534, "extra_groups": [], "env": environment}
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        whole = [part.replace("PYTHON", python) for part in command]
        if command[0].startswith("-"):
            whole = [python, *whole]
        try:
            subprocess.run([python, "-c", "import av, numpy"], check=True, stderr=-3, **user)
            with open(clip, "rb") as file:
                return subprocess.run(whole, stdin=file, capture_output=True, text=True, **user)
        except (OSError, subprocess.CalledProcessError):
            continue
    pytest.skip("another user may not run this Python")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the filter is of x86-64")
def test_a_filter_that_is_there_already_is_no_hindrance(clip):
    """Container runtimes install one that forbids what decoders never do."""
    forbid_mount = "(0x20,0,0,0),(0x15,0,1,165),(6,0,0,0x50001),(6,0,0,0x7fff0000)"
    program = (
        "import ctypes, struct, sys\n"
        "from pipelines.media.decoder.process import DecoderProcess\n"
        "from pipelines.media.decoder.seccomp import forbid_new_privileges\n"
        "forbid_new_privileges()\n"
        f"code = b''.join(struct.pack('<HBBI', *step) for step in ({forbid_mount}))\n"
        "kept = ctypes.create_string_buffer(code, len(code))\n"
        "header = struct.pack('@HxxxxxxP', len(code) // 8, ctypes.addressof(kept))\n"
        "assert ctypes.CDLL(None).prctl(22, 2, header, 0, 0) == 0\n"
        "decoder = DecoderProcess(max_memory_bytes=10**9, timeout_seconds=60.0,\n"
        "    sandbox='required')\n"
        f"print(len(list(decoder.segments({str(clip)!r}, **{DECODE_SHORT!r}))), decoder.start())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("2 confined (seccomp, Landlock"), done.stderr

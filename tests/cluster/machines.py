"""Machines of their own on one Linux: an address, a host name, processes and a disk each.

A machine is a set of namespaces. Its network is joined to the others' by a bridge:

    bridge 10.77.0.1 --+-- veth --- eth0 10.77.0.2   (network, mounts, processes, host name)
                       +-- veth --- eth0 10.77.0.3
                       +-- tap -- relay (50 ms, 1 % lost) -- tap 10.77.0.4

The disk of the host is read-only in it, apart from its own /tmp; packages of this checkout are
hidden. So two machines share nothing but what they send each other.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import urlsplit

from tests.cluster.slow_link import SlowLink

NETWORK = "10.77.0"
HOST_ADDRESS = f"{NETWORK}.1"
REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = "XKD_CLUSTER_FOLDER"
"""Environment variable with the folder of disks and logs, inside of the namespaces."""
_PACKAGES = ("xkd_core", "pipelines", "ray_jobs", "conf")
_INIT = """
import os, time
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.1)
"""
"""The first process of a machine, which reaps what others leave."""


def in_namespaces(arguments: Sequence[str]) -> int:
    """Runs this program again where it may make bridges and mounts; all ends with it."""
    kinds = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child")
    command = ["unshare", *kinds, "--mount-proc", sys.executable, "-m", "tests.cluster"]
    # A first process of a namespace ignores SIGTERM; it ends with the one that made it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(os.EX_TEMPFAIL))
    with tempfile.TemporaryDirectory(prefix="xkd-cluster-") as folder:
        environment = os.environ | {FOLDER: folder}
        inside = subprocess.Popen([*command, *arguments], env=environment)
        try:
            return inside.wait()
        finally:
            inside.kill()
            inside.wait()


def make_network() -> None:
    """Makes the bridge, in the namespace of this process."""
    for line in (
        "link set lo up",
        "link add br0 type bridge",
        f"address add {HOST_ADDRESS}/24 dev br0",
        "link set br0 up",
    ):
        _ip(line)


class Machine:
    """A running machine.

    Args:
        name: Its host name, which all machines know.
        number: The last part of its address.
        folder: Gets its disk and its logs.
        hosts: File of host names.
        slow: Whether each packet takes 50 ms and one in a hundred is lost, in both directions.
    """

    def __init__(self, name: str, number: int, folder: Path, hosts: Path, *, slow: bool) -> None:
        self.name, self.address = name, f"{NETWORK}.{number}"
        self._link = f"m{number}"
        self._folder = folder / name
        temporary = self._folder / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        temporary.chmod(0o1777)
        lines = [
            f"hostname {name}",
            "mount --make-rprivate /",
            f"mount --bind {shlex.quote(str(hosts))} /etc/hosts",
            f"mount --bind {shlex.quote(str(temporary))} /tmp",
            "mount -t tmpfs -o size=1g tmpfs /dev/shm",
            *(f"mount -t tmpfs tmpfs {shlex.quote(str(folder))}" for folder in _hidden()),
            "mount -o remount,bind,ro /",
            "echo ready",
            f"exec {shlex.quote(sys.executable)} -c {shlex.quote(_INIT)}",
        ]
        kinds = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child")
        self._outer = subprocess.Popen(
            ["unshare", *kinds, "--mount-proc", "sh", "-euc", "\n".join(lines)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(self._folder / "log.txt").open("ab"),
            text=True,
        )
        assert self._outer.stdout is not None
        assert self._outer.stdout.readline() == "ready\n", f"{name} does not start"
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text()
        self._init = int(children)
        self.slow_link = SlowLink(self._link, "eth0", self._init) if slow else None
        if not slow:
            _ip(f"link add {self._link} type veth peer name eth0 netns {self._init}")
        _ip(f"link set {self._link} master br0 up")
        self._inside("ip", "link", "set", "lo", "up")
        self._inside("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self._inside("ip", "link", "set", "eth0", "up")
        self._inside("ip", "route", "add", "default", "via", HOST_ADDRESS)

    def start(
        self, command: Sequence[str], environment: Mapping[str, str]
    ) -> "subprocess.Popen[bytes]":
        """Starts a program on it, whose output goes to a file of the machine."""
        with (self._folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [*self._enter(), *command],
                env=dict(environment) | {"HOME": "/tmp/home", "TMPDIR": "/tmp"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], timeout: float = 120
    ) -> str:
        """Runs a program on it to its end; returns what it prints."""
        return subprocess.run(
            [*self._enter(), *command],
            env=dict(environment) | {"HOME": "/tmp/home", "TMPDIR": "/tmp"},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
        ).stdout

    def processes(self, text: str) -> list[int]:
        """Returns the processes on it whose command line holds a text."""
        inside = os.readlink(f"/proc/{self._init}/ns/pid")
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.readlink(entry / "ns/pid") == inside:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found += [int(entry.name)] if text in line else []
            except OSError:
                continue
        return sorted(found)

    def cut(self) -> None:
        """Takes it off the network: nothing is refused, nothing answers."""
        _ip(f"link set {self._link} down")

    def join(self) -> None:
        """Puts it back on the network."""
        _ip(f"link set {self._link} up")

    def power_off(self) -> None:
        """Ends it without a word to anybody."""
        if self._outer.poll() is None:
            self.cut()
            os.kill(self._init, signal.SIGKILL)
            self._outer.wait()
            # The kernel takes a moment to end a network, and another machine may want the name.
            subprocess.run(["ip", "link", "delete", self._link], stderr=subprocess.DEVNULL)
        if self.slow_link is not None:
            self.slow_link.close()

    def _enter(self) -> list[str]:
        kinds = ("--net", "--mount", "--uts", "--ipc", "--pid")
        return ["nsenter", "--target", str(self._init), *kinds, "--"]

    def _inside(self, *command: str) -> None:
        subprocess.run([*self._enter(), *command], check=True)


def _hidden() -> set[Path]:
    """Returns the folders of XKD here, and of the checkout that the environment has installed."""
    checkouts = {REPOSITORY}
    installed = distribution("xkd").read_text("direct_url.json")
    if installed is not None:
        checkouts.add(Path(urlsplit(json.loads(installed)["url"]).path))
    return {one / name for one in checkouts for name in _PACKAGES if (one / name).is_dir()}


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Waits until a condition holds; fails with what was waited for."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"waited {seconds:g} s in vain: {what}")
        time.sleep(1.0)


def _ip(line: str) -> None:
    subprocess.run(["ip", *line.split()], check=True)

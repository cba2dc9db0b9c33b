"""Runs the steps of `docker/Dockerfile` in a Debian root, where there is no Docker.

    debootstrap --variant=minbase --include=python3.11,python3-venv,python3-pip,ca-certificates \\
        bookworm ROOT
    sudo python -m tests.cluster.dockerfile root=ROOT work=FOLDER [bind=FOLDER] [try=FOLDER] \\
        [STAGE ...]

Each stage is an overlay over its base; FROM, ENV, WORKDIR, COPY, RUN and USER are carried out as
written. What differs from Docker: the base is Debian's own Python instead of the Python image, and
.dockerignore does not apply. Folders of `bind=`, such as a local index of packages, are seen in
every stage, and variables of pip pass through. Prints each step, and then what the scripts of
`try=` print, `STAGE.sh` in a folder: each runs as the stage's user in a network of its own.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_BOUND = ("/proc", "/dev", "/sys")
_COPIED = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")


_AS_THE_PYTHON_IMAGE = """
ln -sf /usr/bin/python3.11 /usr/local/bin/python
ln -sf /usr/bin/pip3 /usr/local/bin/pip
rm -f /usr/lib/python3.11/EXTERNALLY-MANAGED
"""
_ALONE = """
ip link set lo up
exec "$@"
"""


@dataclass
class Stage:
    """A stage that was built."""

    root: Path
    layers: list[Path]
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"


def instructions(text: str) -> list[tuple[str, str]]:
    """Returns the steps of a Dockerfile: the instruction and the rest."""
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


class Builder:
    """Builds stages.

    Args:
        debian: The root that stands for the base image.
        work: Gets the overlays.
        bound: Folders of this machine that stages see.
    """

    def __init__(self, debian: Path, work: Path, bound: Sequence[str]) -> None:
        self._debian, self._work, self._bound = debian, work, (*_BOUND, *bound)
        self.stages: dict[str, Stage] = {}

    def begin(self, base: str, name: str) -> Stage:
        """Begins a stage on another, or on the root."""
        before = self.stages.get(base)
        folder = self._work / name
        upper, scratch, root = (folder / one for one in ("upper", "scratch", "root"))
        for one in (upper, scratch, root):
            one.mkdir(parents=True, exist_ok=True)
        lower = before.layers if before else [self._debian]
        options = f"lowerdir={':'.join(map(str, lower))},upperdir={upper},workdir={scratch}"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", root], check=True)
        for bound in self._bound:
            Path(f"{root}{bound}").mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--rbind", bound, f"{root}{bound}"], check=True)
        stage = Stage(root, [upper, *lower])
        if before:
            stage.environment = dict(before.environment)
            stage.folder, stage.user = before.folder, before.user
        else:
            stage.environment["PATH"] = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
            for file in _COPIED:
                if Path(file).exists():
                    Path(f"{root}{file}").parent.mkdir(parents=True, exist_ok=True)
                    subprocess.run(["cp", "-L", file, f"{root}{file}"], check=True)
            subprocess.run(["chroot", root, "sh", "-euc", _AS_THE_PYTHON_IMAGE], check=True)
        self.stages[name] = stage
        return stage

    def step(self, stage: Stage, kind: str, rest: str) -> None:
        """Carries out one step."""
        if kind == "ENV":
            for pair in shlex.split(rest):
                name, value = pair.split("=", 1)
                stage.environment[name] = value.replace("$PATH", stage.environment["PATH"])
        elif kind == "WORKDIR":
            stage.folder = rest
            (stage.root / rest.strip("/")).mkdir(parents=True, exist_ok=True)
        elif kind == "USER":
            stage.user = rest
        elif kind == "COPY":
            self._copy(stage, rest)
        elif kind == "RUN":
            done = self.run(stage, rest)
            assert done.returncode == 0, done.stdout[-6000:]

    def run(
        self, stage: Stage, command: str, *, is_alone: bool = False
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a command in a stage, as its user; alone, in a network of its own."""
        kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        kept["HOME"] = "/tmp"
        around = ("unshare", "--net", "sh", "-euc", _ALONE, "-") if is_alone else ()
        return subprocess.run(
            [
                *around,
                *("chroot", f"--userspec={stage.user}", str(stage.root)),
                *("sh", "-c", f"cd {shlex.quote(stage.folder)} && {command}"),
            ],
            env=stage.environment | kept,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def _copy(self, stage: Stage, rest: str) -> None:
        *sources, target = rest.split()
        origin = REPOSITORY
        if sources[0].startswith("--from="):
            origin = self.stages[sources.pop(0).removeprefix("--from=")].root
        there = stage.root / (Path(stage.folder) / target).as_posix().strip("/")
        for source in sources:
            path = origin / source.strip("/")
            place = there / path.name if len(sources) > 1 or target.endswith("/") else there
            place = there / path.name if path.is_file() and there.is_dir() else place
            place.parent.mkdir(parents=True, exist_ok=True)
            inside = f"{path}/." if path.is_dir() else str(path)
            if path.is_dir():
                place.mkdir(exist_ok=True)
            # A link costs no room for files that nobody changes.
            subprocess.run(["cp", "-a", "--reflink=auto", inside, str(place)], check=True)


def main(arguments: list[str]) -> int:
    """Builds all stages, or those up to the last one named."""
    options = [one.split("=", 1) for one in arguments if "=" in one]
    given = dict(options)
    wanted = [one for one in arguments if "=" not in one]
    work = Path(given.get("work") or tempfile.mkdtemp(prefix="xkd-images-"))
    bound = [value for name, value in options if name == "bind"]
    builder = Builder(Path(given["root"]).resolve(), work.resolve(), bound)
    stage = None
    for kind, rest in instructions((REPOSITORY / "docker/Dockerfile").read_text()):
        if kind == "FROM":
            base, _, name = rest.split()
            stage = builder.begin(base, name) if not wanted or name in wanted else None
            print(f"--- {name}" if stage else f"--- {name}: left out", flush=True)
        elif stage is not None:
            begun = time.monotonic()
            builder.step(stage, kind, rest)
            print(f"{time.monotonic() - begun:5.0f} s  {kind} {rest[:90]}", flush=True)
    for name, built in builder.stages.items():
        script = Path(given.get("try", os.devnull)) / f"{name}.sh"
        if script.is_file():
            done = builder.run(built, script.read_text(), is_alone=True)
            print(f"--- {script}: {done.returncode}\n{done.stdout}".rstrip())
    return 0


if __name__ == "__main__":
    if os.environ.get("XKD_IMAGES_INSIDE"):
        sys.exit(main(sys.argv[1:]))
    command = ["unshare", "--mount", sys.executable, "-m", "tests.cluster.dockerfile"]
    inside = os.environ | {"XKD_IMAGES_INSIDE": "1"}
    sys.exit(subprocess.run([*command, *sys.argv[1:]], env=inside, check=False).returncode)

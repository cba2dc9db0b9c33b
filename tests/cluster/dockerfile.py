"""Runs the steps of `docker/Dockerfile` in a Debian root, where there is no Docker.

    debootstrap --variant=minbase bookworm ROOT       # and python3.11, its venv and pip in it
    sudo python -m tests.cluster.dockerfile root=ROOT work=FOLDER [STAGE ...]

Each stage is an overlay over its base; FROM, ENV, WORKDIR, COPY, RUN and USER are carried out as
written. What differs from Docker: the base is Debian's own Python instead of the Python image, and
.dockerignore does not apply. Prints each step, and what a container of the stage would print for
the commands given with `try=`.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_BOUND = ("/proc", "/dev", "/sys")
_COPIED = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")


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
    """

    def __init__(self, debian: Path, work: Path) -> None:
        self._debian, self._work = debian, work
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
        for one in _BOUND:
            subprocess.run(["mount", "--rbind", one, f"{root}{one}"], check=True)
        stage = Stage(root, [upper, *lower])
        if before:
            stage.environment = dict(before.environment)
            stage.folder, stage.user = before.folder, before.user
        else:
            stage.environment["PATH"] = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
            for file in _COPIED:
                if Path(file).exists():
                    subprocess.run(["cp", "-L", file, f"{root}{file}"], check=True)
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
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    def run(self, stage: Stage, command: str) -> "subprocess.CompletedProcess[str]":
        """Runs a command in a stage, as its user."""
        kept = {"PIP_CERT": "/etc/ssl/certs/ca-certificates.crt", "HOME": "/tmp"}
        return subprocess.run(
            [
                *("chroot", f"--userspec={stage.user}", str(stage.root)),
                *("sh", "-c", f"cd {shlex.quote(stage.folder)} && {command}"),
            ],
            env=stage.environment | kept,
            capture_output=True,
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
    tried = [value for name, value in options if name == "try"]
    given = dict(options)
    wanted = [one for one in arguments if "=" not in one]
    work = Path(given.get("work") or tempfile.mkdtemp(prefix="xkd-images-"))
    builder = Builder(Path(given["root"]).resolve(), work.resolve())
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
    for command in tried:
        for name in builder.stages:
            done = builder.run(builder.stages[name], command)
            print(f"{name}$ {command}\n{done.returncode}: {done.stdout}{done.stderr}".rstrip())
    return 0


if __name__ == "__main__":
    if os.environ.get("XKD_IMAGES_INSIDE"):
        sys.exit(main(sys.argv[1:]))
    command = ["unshare", "--mount", sys.executable, "-m", "tests.cluster.dockerfile"]
    inside = os.environ | {"XKD_IMAGES_INSIDE": "1"}
    sys.exit(subprocess.run([*command, *sys.argv[1:]], env=inside, check=False).returncode)

"""The upload: XKD's code and the configuration, and nothing else of the working directory."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipelines.paths import PACKAGES
from ray_jobs.cli.bases import read_configuration
from ray_jobs.cli.configurations import configuration_folder
from ray_jobs.cli.jobs import JOBS
from ray_jobs.submit.submission import Submission

_CODE = ("xkd_core", "pipelines", "ray_jobs")
_CONFIG = "submitted.yaml"
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


@dataclass(frozen=True)
class Package:
    """A folder to upload."""

    folder: Path
    config: str | None
    """Path of the configuration in it, if one is uploaded."""
    files: Sequence[tuple[str, int]]
    """Names and sizes."""

    @property
    def num_files(self) -> int:
        """Number of files."""
        return len(self.files)

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(size for _, size in self.files)

    def largest(self, count: int) -> list[tuple[str, int]]:
        """Returns the largest files."""
        return sorted(self.files, key=lambda file: -file[1])[:count]


@contextmanager
def staged(submission: Submission) -> Iterator[Package]:
    """Yields a temporary folder with the code and the configuration, whose bases are merged."""
    with tempfile.TemporaryDirectory(prefix="xkd-submit-") as name:
        folder = Path(name)
        for package in _CODE:
            shutil.copytree(PACKAGES / package, folder / package, ignore=_LEFT_OUT)
        shutil.copytree(
            configuration_folder(), folder / "conf", ignore=_LEFT_OUT, dirs_exist_ok=True
        )
        if (project := PACKAGES / "pyproject.toml").exists():
            shutil.copy(project, folder)
        config = None
        if submission.file is not None:
            values = read_configuration(submission.file, JOBS[submission.job].schema()).values
            (folder / _CONFIG).write_text(yaml.safe_dump(values, sort_keys=False))
            config = _CONFIG
        files = [
            (str(file.relative_to(folder)), file.stat().st_size)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        ]
        yield Package(folder, config, files)

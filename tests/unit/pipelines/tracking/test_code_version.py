"""The version of the code is a commit only where that commit holds the code."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.paths import PACKAGES

OWN = ("errors.py", "paths.py", "__init__.py", "tracking/__init__.py", "tracking/code_version.py")
TOLD = "from pipelines.tracking.code_version import code_version\nprint(code_version())"


@pytest.fixture
def project(tmp_path):
    """A repository that tracks one file of its own."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git(tmp_path, "init", "--quiet")
    (tmp_path / "own.txt").write_text("somebody's project")
    commit(tmp_path)
    return tmp_path


def git(folder, *arguments):
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def commit(folder):
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a")
    return git(folder, "rev-parse", "HEAD")


def copy_code(folder):
    for name in OWN:
        path = folder / "pipelines" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGES / "pipelines" / name, path)
    return folder


def version_told(folder, **environment):
    """What the code in a folder says of itself in a Python without other packages."""
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {str(folder)!r})\n{TOLD}",
        ],
        cwd=folder,
        env={"PATH": str(Path(shutil.which("git")).parent), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_checkout_tells_its_commit_and_whether_it_was_changed(project):
    copy_code(project)
    head = commit(project)
    assert version_told(project) == head
    (project / "notes.txt").write_text("beside the code")
    assert version_told(project) == head
    with (project / "pipelines/paths.py").open("a") as file:
        file.write("# changed\n")
    assert version_told(project) == f"{head}-dirty"
    git(project, "checkout", "--quiet", "pipelines")
    (project / "pipelines/new.py").touch()
    assert version_told(project) == f"{head}-dirty"


def test_a_repository_around_the_package_is_not_its_version(project):
    site = copy_code(project / ".venv/lib/site-packages")
    (project / ".gitignore").write_text(".venv\n")
    commit(project)
    assert version_told(site) == "xkd, unknown version"
    described = site / "xkd-9.8.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: xkd\nVersion: 9.8\n")
    assert version_told(site) == "xkd 9.8"


def test_an_uploaded_source_tree_tells_the_version_in_it(tmp_path):
    tree = copy_code(tmp_path / "_ray_pkg_0123")
    assert version_told(tree) == "xkd, unknown version"
    (tree / "pyproject.toml").write_text('[project]\nname = "xkd"\nversion = "9.7"\n')
    assert version_told(tree) == "xkd 9.7"


def test_the_repository_of_a_hook_is_not_asked(project, tmp_path_factory):
    tree = copy_code(tmp_path_factory.mktemp("elsewhere"))
    assert version_told(tree, GIT_DIR=str(project / ".git")) == "xkd, unknown version"

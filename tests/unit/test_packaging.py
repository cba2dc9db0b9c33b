"""The wheel holds what an installation needs, and every package that it asks for is pinned."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
TOP_LEVEL = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
FOLDERS = ("conf", "pipelines", "ray_jobs", "xkd_core")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The files of the wheel, by their paths in it."""
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    source = tmp_path_factory.mktemp("source")
    for name in TOP_LEVEL:
        shutil.copy(REPOSITORY / name, source)
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    (source / "tests").mkdir()
    (source / "tests" / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", "built"],
        cwd=source,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = source / "built"
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def files_of(folder, pattern):
    files = (REPOSITORY / folder).rglob(pattern)
    return {str(file.relative_to(REPOSITORY)) for file in files if "__pycache__" not in file.parts}


def test_the_wheel_holds_all_code_templates_and_configurations(built):
    code = {file for folder in FOLDERS[1:] for file in files_of(folder, "*.py")}
    settings = {f"ray_jobs/{file}" for file in files_of("conf", "*.yaml")}
    templates = files_of("pipelines", "*.html")
    assert len(settings) > 10
    assert len(templates) == 4
    assert built >= code | settings | templates
    assert built >= {f"{folder}/py.typed" for folder in FOLDERS[1:]}


def test_the_wheel_holds_nothing_else(built):
    assert {file.partition("/")[0] for file in built} == set(FOLDERS[1:])
    assert {Path(file).suffix for file in built} <= {".py", ".yaml", ".html", ".typed", ".md"}


def pins():
    """Versions by name, of those that hold for this Python and system."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[^*,]+", str(one.specifier)) for one in wanted)
    return {
        canonicalize_name(one.name): str(one.specifier).removeprefix("==")
        for one in wanted
        if one.marker is None or one.marker.evaluate()
    }


def asked_for(name, extras):
    """The packages that one asks for here, and the extras of them."""
    try:
        requires = distribution(name).requires or []
    except PackageNotFoundError:
        return
    for text in requires:
        one = Requirement(text)
        if one.marker is None or any(one.marker.evaluate({"extra": x}) for x in (*extras, "")):
            yield canonicalize_name(one.name), tuple(one.extras)


def test_every_package_is_pinned_direct_or_not():
    pinned, seen, waiting = pins(), set(), [("xkd", ("dev",))]
    while waiting:
        new = set(asked_for(*waiting.pop())) - seen
        seen |= new
        waiting += new
    names = {name for name, _ in seen}
    assert len(names) > 100
    assert names - pinned.keys() == set()


def test_the_header_of_the_pins_names_a_command_and_no_host():
    text = (REPOSITORY / "constraints.txt").read_text()
    assert "make constraints" in text
    assert re.search(r"^constraints:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert "://" not in text
    assert "/" not in text


def test_the_changelog_begins_with_this_version():
    project = (REPOSITORY / "pyproject.toml").read_text()
    current = re.search(r'^version = "(.+?)"', project, re.MULTILINE)[1]
    first = re.search(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first[1] == current
    assert version("xkd")  # what programs show


def test_the_citation_is_that_of_the_readme():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    paper = citation["preferred-citation"]
    readme = (REPOSITORY / "README.md").read_text()
    assert paper["doi"] in readme
    assert str(paper["year"]) in readme
    assert all(author["family-names"] in readme for author in paper["authors"])


def test_hooks_run_what_lint_runs():
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0][
        "hooks"
    ]
    makefile = (REPOSITORY / "Makefile").read_text()
    lint = makefile.partition("lint: install\n")[2].partition("\n\n")[0]
    tools = set(re.findall(r"\$\(BIN\)/(\S+)", lint))
    assert tools == {"ruff", "lint-imports", "mypy"}
    assert {hook["entry"].split()[0] for hook in hooks} == tools
    assert all(hook["language"] == "system" for hook in hooks)

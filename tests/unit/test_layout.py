"""What the layout promises: small folders, files and functions, documented names, true READMEs."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("xkd_core", "pipelines", "ray_jobs")
MAX_MODULES, MAX_LINES, MAX_FUNCTION_LINES, MAX_README_LINES = 25, 300, 60, 150
LONG_FILES = {
    "pipelines/sources/published_datasets.py": "one function per dataset",
    "xkd_core/config.py": "what README and paper are compared with",
    "xkd_core/xkd.py": "the networks as the paper draws them",
}
FILES = sorted(
    path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py") if path.is_file()
)
READMES = sorted(
    path
    for path in REPOSITORY.rglob("*.md")
    if not {".venv", ".git", "runs"} & set(path.relative_to(REPOSITORY).parts)
)
PROGRAM = re.compile(r"^\s*(?:xkd |python -m ray_jobs\.)([a-z_-]+)(.*)$")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")
PATH = re.compile(r"`((?:xkd_core|pipelines|ray_jobs|conf|tests|docker)/[\w./-]*)`")


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def is_public(name: str) -> bool:
    return not name.startswith("_")


def test_no_folder_holds_too_many_modules():
    folders = {path.parent for path in FILES}
    counts = {name_of(folder): len(list(folder.glob("*.py"))) - 1 for folder in folders}
    assert len(counts) > 15
    assert {folder: count for folder, count in counts.items() if count > MAX_MODULES} == {}


def test_no_file_is_too_long_but_those_with_a_reason():
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    long = {name for name, length in lengths.items() if length > MAX_LINES}
    assert long <= LONG_FILES.keys(), {name: lengths[name] for name in long - LONG_FILES.keys()}
    assert LONG_FILES.keys() <= lengths.keys()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_function_is_too_long():
    long = {
        f"{name_of(path)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in functions(path)
        if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert long == {}


def undocumented(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    inner = [node for owner in classes if is_public(owner.name) for node in owner.body]
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in [*tree.body, *inner]:
        is_open = isinstance(node, documented) and is_public(node.name)
        if is_open and not ast.get_docstring(node):
            yield f"{name_of(path)}:{node.lineno} {node.name}"
    if not ast.get_docstring(tree):
        yield name_of(path)


def test_every_public_name_says_what_it_is():
    assert [name for path in FILES for name in undocumented(path)] == []


def test_the_first_page_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_links_and_paths_of_a_readme_exist(readme):
    text = readme.read_text()
    links = [link for link in LINK.findall(text) if "://" not in link]
    missing = [link for link in links if not (readme.parent / link).exists()]
    missing += [path for path in PATH.findall(text) if not (REPOSITORY / path).exists()]
    assert missing == []


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_commands_of_a_readme_name_jobs_and_files_that_exist(readme):
    wrong = []
    for line in readme.read_text().splitlines():
        if not (match := PROGRAM.match(line)):
            continue
        job, rest = match[1].replace("-", "_"), match[2].split("#")[0].split()
        if job == "submit":  # its options come before the job
            job, *rest = re.sub(r"--\w+(-\w+)* \S+", "", " ".join(rest)).split() or ["run"]
            if job in ("list", "logs", "stop"):
                continue
        if not (REPOSITORY / "ray_jobs" / f"{job}.py").exists():
            wrong.append(line)
            continue
        settings = [word for word in rest if word.startswith("conf/")]
        settings += [
            f"conf/{job}/{word}.yaml" for word in rest[:1] if re.fullmatch(r"[a-z0-9_]+", word)
        ]
        wrong += [line for file in settings if not (REPOSITORY / file).exists()]
    assert wrong == []


def test_readmes_are_tracked_and_found():
    tracked = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.split()
    assert "README.md" in map(name_of, READMES)
    assert len(READMES) > 8
    assert not tracked or set(tracked) <= set(map(name_of, READMES))

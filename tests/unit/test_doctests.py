"""Examples in docstrings show what the code does."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

from tests.helpers.programs import REPOSITORY

PROMPT = re.compile(r"^\s*>>> ", re.MULTILINE)


def modules_with_examples() -> list[str]:
    return sorted(
        ".".join(file.relative_to(REPOSITORY).with_suffix("").parts)
        for package in ("xkd_core", "pipelines", "ray_jobs")
        for file in (REPOSITORY / package).rglob("*.py")
        if PROMPT.search(file.read_text(encoding="utf-8"))
    )


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_of_a_module_are_true(name: str):
    module = importlib.import_module(name)
    written = len(PROMPT.findall(Path(module.__file__).read_text(encoding="utf-8")))
    done = doctest.testmod(module)
    # doctest does not look into functions that a decorator hides: none may go unseen.
    assert (done.attempted, done.failed) == (written, 0)

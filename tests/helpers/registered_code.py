"""A copy of the code that travels in registered models, whose encoders answer differently."""

import shutil
from pathlib import Path

from pipelines.paths import PACKAGES

_LINE = "return (of_inputs / num_segments[:, None])"


def copy_code(folder: Path, *, factor: int) -> Path:
    """Our packages, whose encoders answer `factor` times as much."""
    for package in ("pipelines", "xkd_core"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACKAGES / package, folder / package, ignore=ignored)
    multiply_answers(folder / "pipelines" / "models" / "encoder_model.py", factor)
    return folder


def multiply_answers(file: Path, factor: int) -> None:
    """Edits `encoder_model.py`."""
    text = file.read_text()
    assert _LINE in text
    file.write_text(text.replace(_LINE, _LINE.replace("(of", f"({factor} * of")))

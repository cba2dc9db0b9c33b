"""What all pages share: one HTML file that opens anywhere without a network.

A page holds no script, fetches nothing (its content security policy forbids both), and treats every
name, path and message as hostile: they come from users' files.
"""

import json
import os
import tempfile
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipelines.errors import UserError
from pipelines.evaluation.scores import percent


def write_page(path: Path, text: str) -> Path:
    """Writes a page to `path`, whole or not at all.

    Raises:
        UserError: if the file cannot be written.
    """
    # A name that is no UTF-8 comes from the file system as lone surrogates: write them escaped.
    page = text.encode("utf-8", "backslashreplace")
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}-", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(page)
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        raise UserError(f"page ({path}) cannot be written: {error.strerror or error}") from error
    return path


def page_environment() -> Environment:
    """Templates of pages, which take every text as hostile."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown_text,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "duration": duration,
        "compact": compact,
        "words": lambda code: code.replace("_", " "),
        "quoted": lambda text: json.dumps(text, ensure_ascii=False),
    }
    return environment


def duration(seconds: float) -> str:
    """Writes a time span for people.

    >>> duration(59), duration(3600 * 26 + 60)
    ('59 s', '26 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _shown_text(value: Any) -> Any:
    """What a page shows of a value: characters that are not seen are spelled out."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def visible(text: str) -> str:
    r"""Makes characters visible that could hide or reorder text, or cannot be written at all.

    >>> visible("a\u202eb")
    'a\\u202eb'
    """
    return "".join(
        f"\\u{ord(c):04x}"
        if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t"
        else c
        for c in text
    )


def compact(value: float) -> str:
    """Writes a value with about four figures.

    >>> [compact(value) for value in (0.123456, 1234.5, 0.0000123, 3.0)]
    ['0.1235', '1,234', '1.2e-05', '3']
    """
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.2g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

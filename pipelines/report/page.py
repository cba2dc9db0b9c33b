"""What all pages share: one HTML file that opens anywhere without a network.

A page holds no script, fetches nothing (its content security policy forbids both), and treats every
name, path and message as hostile: they come from users' files.
"""

import json
import unicodedata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipelines.errors import UserError
from pipelines.evaluation.scores import percent
from pipelines.files import replacing, write_failure
from pipelines.quantities import counted, duration
from pipelines.storage import AnyPath


def write_page(path: AnyPath, text: str) -> AnyPath:
    """Writes a page to `path`, whole or not at all.

    Raises:
        UserError: if the file cannot be written.
    """
    # File names that are not UTF-8 contain lone surrogates: write those escaped.
    page = text.encode("utf-8", "backslashreplace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(page)
    except OSError as error:
        raise UserError(f"page ({path}) cannot be written: {write_failure(error)}") from error
    return path


def page_environment() -> Environment:
    """Returns the templates; every text is escaped, whatever it contains."""
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
        "counted": counted,
        "duration": duration,
        "compact": compact,
        "words": lambda code: code.replace("_", " "),
        "quoted": lambda text: json.dumps(text, ensure_ascii=False),
    }
    return environment


def _shown_text(value: Any) -> Any:
    """Spells out the invisible characters of a text, which are not escaped as markup is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def visible(text: str) -> str:
    r"""Spells out characters that hide or reorder text, or that cannot be encoded.

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
    """Formats a value with about four digits.

    >>> [compact(value) for value in (0.123456, 1234.5, 0.0000123, 3.0)]
    ['0.1235', '1,234', '1.2e-05', '3']
    """
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.2g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

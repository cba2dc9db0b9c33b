"""Text that may be shown: one line, without the passwords of URIs."""

import re

_SECRET = re.compile(r"(\w://)(?:[^/\s]+@|[^/\s:]+:[^/\n]+@)")
"""User and password as far as the last `@` of a word; blanks only after the `:` of a password."""


def redacted(text: str) -> str:
    """Strikes user and password out of every URI in a text; none needs to be a right one.

    >>> redacted("uri: https://me:secret@host/x")
    'uri: https://***@host/x'
    >>> redacted("https://me:p@ss@host and a@b")
    'https://***@host and a@b'
    >>> redacted("http://me:two words@host:5000")
    'http://***@host:5000'
    """
    return _SECRET.sub(r"\1***@", text)


def one_line(error: BaseException) -> str:
    """Says an error in one line; clients put whole URIs into theirs, with password and all."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(redacted(str(text)).split())[:300]

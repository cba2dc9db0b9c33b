"""Redaction of URI passwords in text for users."""

import re

_SECRET = re.compile(r"(\w://)(?:[^/\s]+@|[^/\s:]+:[^/\n]+@)")
"""The user and password, up to the last `@` of a word. Only a password may contain spaces."""


def redacted(text: str) -> str:
    """Replaces the user and password of every URI in a text, even of malformed URIs.

    >>> redacted("uri: https://me:secret@host/x")
    'uri: https://***@host/x'
    >>> redacted("https://me:p@ss@host and a@b")
    'https://***@host and a@b'
    >>> redacted("http://me:two words@host:5000")
    'http://***@host:5000'
    """
    return _SECRET.sub(r"\1***@", text)


def one_line(error: BaseException) -> str:
    """Returns an error as one redacted line, because clients may quote URIs with passwords."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(redacted(str(text)).split())[:300]

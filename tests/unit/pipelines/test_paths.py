"""What is written down of a URI names no password, whatever the password looks like."""

import pytest

from pipelines.redaction import redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host/x", "https://***@host/x"),
        (
            "uri: postgresql+psycopg://me:secret@[::1]:5/x",
            "uri: postgresql+psycopg://***@[::1]:5/x",
        ),
        ("http://me:sec@ret@host and a@b", "http://***@host and a@b"),
        ("http://me:sec?r#et@host", "http://***@host"),
        ("http://me:my secret@host:5000", "http://***@host:5000"),
        ("a: http://me:secret@h\nb: s3://secret@i", "a: http://***@h\nb: s3://***@i"),
    ],
)
def test_user_and_password_are_struck_out(text, shown):
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "https://host:5000/a@b and me@there",
        "https://host and me@there",
        "sqlite:////home/me@work/mlflow.db",
        "uri: http://host:5000\nname: me@there",
    ],
)
def test_what_holds_no_password_stays(text):
    assert redacted(text) == text

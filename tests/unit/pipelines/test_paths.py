"""What is written down of a URI names no password, whatever the password looks like."""

import pytest

from pipelines.paths import absolute_location
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


@pytest.mark.parametrize(
    ("given", "absolute"),
    [
        ("s3a://bucket/a b/100%/", "s3://bucket/a b/100%"),
        ("GCS://bucket/x", "gs://bucket/x"),
        ("s3://bucket", "s3://bucket"),
        ("https://host/list?x=a/", "https://host/list?x=a/"),
        ("hdfs:///x/", "hdfs:///x"),
        ("file:///a/../b%20c", "/b c"),
        ("/x/y/", "/x/y"),
        ("runs/../clips", "s3://home/of xkd/clips"),
    ],
)
def test_a_location_has_one_spelling(given, absolute, monkeypatch):
    monkeypatch.setenv("XKD_HOME", "s3a://home/of xkd/")
    assert absolute_location(given) == absolute


@pytest.mark.parametrize("given", ["s3://", "s3:///", "s3://me:secret@bucket/x"])
def test_a_uri_without_a_bucket_or_with_a_password_is_refused(given):
    with pytest.raises(ValueError, match="must"):
        absolute_location(given)

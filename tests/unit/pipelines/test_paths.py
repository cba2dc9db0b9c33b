"""What is written down of a URI names no password, whatever the password looks like."""

import pytest

from pipelines.paths import absolute_location, home
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


@pytest.mark.parametrize(
    ("given", "absolute"),
    [
        ("../clips", "s3://bucket/team/clips"),
        (".", "s3://bucket/team/xkd"),
        ("..", "s3://bucket/team"),
        ("../..", "s3://bucket"),
        ("./a b", "s3://bucket/team/xkd/a b"),
        ("./s3:/a", "s3://bucket/team/xkd/s3:/a"),
        ("file://localhost/a", "/a"),
        ("abfss://container/x/", "abfs://container/x"),
        ("az://container", "abfs://container"),
    ],
)
def test_relative_paths_are_resolved_in_a_bucket_as_on_a_disk(given, absolute, monkeypatch):
    monkeypatch.setenv("XKD_HOME", "s3://bucket/team/xkd/")
    assert absolute_location(given) == absolute


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("s3:/bucket/a", r"\(s3:/bucket/a\) must have two slashes after s3:.*: s3://bucket/a"),
        ("s3:bucket/a", "two slashes after s3:"),
        ("file:/a", r"file://a|two slashes after file:"),
        ("dbfs:/a", "two slashes after dbfs:"),
        (" s3://bucket/a", "must not begin with a space"),
        ("s3://bucket/a ", "must not end with a space"),
        ("s3://bucket//a", "must not have two slashes in a row"),
        ("s3://bucket/a//b", "must not have two slashes in a row"),
        ("s3://bucket/a/../b", r"must not have a part '\.\.'"),
        ("gs://bucket/./b", r"must not have a part '\.'"),
        ("s3:///a", "must name a bucket"),
        ("../../../a", r"must not lead out of the bucket of XKD_HOME \(s3://bucket/team/xkd\)"),
        ("file://host/a", r"\(file://host/a\) must have three slashes"),
        ("file://~/a", "must have three slashes"),
        ("~nobody-of-this-name/a", r"\(~nobody-of-this-name/a\) must name an existing user"),
        (
            "abfss://container@account.dfs.core.windows.net/a",
            "abfs://container/PATH with AZURE_STORAGE_ACCOUNT_NAME=account",
        ),
        ("abfs://a:secret@account.dfs.core.windows.net/a", r"\(abfs://\*\*\*\) must not hold"),
    ],
)
def test_what_looks_like_a_uri_is_not_taken_for_a_path(given, message, monkeypatch):
    monkeypatch.setenv("XKD_HOME", "s3://bucket/team/xkd")
    with pytest.raises(ValueError, match=message) as error:
        absolute_location(given)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "folder", ["s3:/bucket/a", "https://host/a", "s3://a//b", "~nobody-here/a"]
)
def test_a_home_that_is_no_folder_is_named(folder, monkeypatch):
    monkeypatch.setenv("XKD_HOME", folder)
    with pytest.raises(ValueError, match=rf"XKD_HOME \({folder}"):
        absolute_location("runs")


def test_a_home_in_the_copy_of_a_submitted_job_is_refused(monkeypatch, tmp_path):
    copy = tmp_path / "_ray_pkg_0123"
    copy.mkdir()
    monkeypatch.chdir(copy)
    monkeypatch.setenv("XKD_HOME", "results")
    with pytest.raises(ValueError, match=r"XKD_HOME \(results\) must be absolute"):
        absolute_location("runs")
    monkeypatch.setenv("XKD_HOME", f"file://{tmp_path}")
    assert absolute_location("runs") == f"{tmp_path}/runs"
    assert home("mlflow.db") == tmp_path

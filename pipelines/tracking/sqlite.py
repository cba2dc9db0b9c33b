"""The files that SQLAlchemy finds for an SQLite URI, and MLflow for the location of artifacts.

Both decode `%XX`, and SQLAlchemy takes what follows a `?` for options:

    sqlite:////home/me/50% done/mlflow.db   /home/me/50% done/mlflow.db
    sqlite:////home/me/a%20b?/mlflow.db     /home/me/a b
"""

from pathlib import Path
from urllib.parse import unquote, urlsplit

SQLITE = "sqlite:///"


def sqlite_file(uri: str) -> Path | None:
    """Returns the file that a URI names; None for a server.

    >>> sqlite_file("sqlite:////a%20b/mlflow.db"), sqlite_file("http://host:5000")
    (PosixPath('/a b/mlflow.db'), None)
    """
    if not uri.startswith(SQLITE):
        return None
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0]))


def artifact_location(path: Path) -> str:
    """Returns the location by which MLflow finds a path on this machine."""
    return str(path).replace("%", "%25")


def local_path(location: str) -> Path | None:
    """Returns the path that MLflow finds for a location; None for a bucket or a server.

    >>> local_path("/a%20b/mlartifacts/"), local_path("file:///a%20b"), local_path("s3://a/b")
    (PosixPath('/a b/mlartifacts'), PosixPath('/a b'), None)
    """
    if location.startswith("/"):
        return Path(unquote(location))
    parts = urlsplit(location)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None

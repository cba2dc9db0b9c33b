"""Runs on the cluster before anything is uploaded, and prints what it finds there as JSON.

It is sent as text to whatever Python the cluster has, so it imports nothing of XKD but a module
that is sent with it.
"""

import datetime
import importlib.util
import json
import logging
import os
import sys
import urllib.request
import uuid
from typing import Any

from pipelines.autoscaler import autoscaler_limits

MARK = "XKD-PROBE "
_SECONDS = 10.0
_ATTEMPTS = 9
_LONGEST = 300
_MLFLOW, _SQLITE = "MLFLOW_TRACKING_URI", "sqlite:///"
_PACKAGES = ("torch", "mlflow", "av", "pyarrow", "omegaconf", "pydantic", "optuna")


def main(asked: str) -> None:
    """Prints versions, nodes, and why places cannot be reached."""
    import ray

    questions = json.loads(asked)
    found: dict[str, Any] = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "ray": ray.__version__,
        "missing": [name for name in _PACKAGES if importlib.util.find_spec(name) is None],
        "places": [_problem(place, questions["marker"]) for place in questions["places"]],
    }
    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    found["nodes"] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    found["most"] = autoscaler_limits()
    print(MARK + json.dumps(found), flush=True)


def _problem(asked: dict[str, Any], marker: str) -> tuple[str, str]:
    """Returns why a place cannot be used, and what its server says; empty if it can."""
    place, is_written = asked["place"], asked["is_written"]
    if place.startswith(marker):
        home = os.environ.get("XKD_HOME")
        if not home:
            return "is relative, and XKD_HOME is set neither here nor on the cluster", ""
        place = home.rstrip("/") + place[len(marker) :]
    if place == _MLFLOW:
        return _problem_of_mlflow()
    try:
        if place.startswith(("http://", "https://")):
            urllib.request.urlopen(place, timeout=_SECONDS).close()
            return "", ""
        if "://" in place:
            return _problem_of_uri(place, is_written), ""
    except urllib.error.HTTPError:
        return "", ""  # it answers
    except Exception as error:
        what = "written" if is_written else "reached"
        return f"cannot be {what} from the cluster", " ".join(str(error).split())[:_LONGEST]
    return _problem_of_path(place, is_written), ""


def _problem_of_mlflow() -> tuple[str, str]:
    """Returns why MLflow cannot be reached where the job's environment says that it is."""
    uri = os.environ.get(_MLFLOW, "")
    if not uri and "://" in os.environ.get("XKD_HOME", "").removeprefix("file://"):
        return "is set neither here nor on the cluster, and a bucket holds no SQLite file", ""
    place = uri
    if uri.startswith(_SQLITE):
        place = os.path.dirname(uri.removeprefix(_SQLITE)) or "/"
    elif not uri.startswith(("http://", "https://")):
        return "", ""
    problem, said = _problem({"place": place, "is_written": False}, "no marker")
    return problem, f"{said} ({uri})".strip() if problem else ""


def _problem_of_path(path: str, is_written: bool) -> str:
    if not is_written:
        return "" if os.path.exists(path) else "does not exist on the cluster"
    parent = path
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    return "" if os.access(parent, os.W_OK) else f"cannot be written on the cluster: {parent}"


def _problem_of_uri(uri: str, is_written: bool) -> str:
    from pyarrow import fs

    filesystem, path = _filesystem(uri.rstrip("/"))
    if isinstance(filesystem, fs.LocalFileSystem):
        return _problem_of_path(path, is_written)
    if is_written:
        file = f"{path}/.{uuid.uuid4().hex[:12]}.tmp"
        with filesystem.open_output_stream(file, compression=None) as stream:
            stream.write(b"may be removed\n")
        # A job needs all three.
        filesystem.get_file_info(fs.FileSelector(f"{file}.none", allow_not_found=True))
        filesystem.delete_file(file)
        return ""
    info = filesystem.get_file_info(path)
    return "" if info.type != fs.FileType.NotFound else f"does not exist: {path}"


def _filesystem(uri: str) -> tuple[Any, str]:
    """Opens a store as a job does: the text after the bucket is the key, without escapes."""
    import fsspec
    from pyarrow import fs

    scheme, _, rest = uri.partition("://")
    variable = os.environ.get
    if scheme in ("s3", "s3a"):
        endpoint = variable("AWS_ENDPOINT_URL_S3") or variable("AWS_ENDPOINT_URL")
        region = variable("AWS_REGION") or variable("AWS_DEFAULT_REGION")
        if region is None:
            bucket = rest.partition("/")[0]
            region = "us-east-1" if endpoint else fs.resolve_s3_region(bucket)
        retries = fs.AwsDefaultS3RetryStrategy(max_attempts=_ATTEMPTS)
        store = fs.S3FileSystem(
            region=region, endpoint_override=endpoint, connect_timeout=10, retry_strategy=retries
        )
        return store, rest
    if scheme in ("gs", "gcs"):
        return fs.GcsFileSystem(retry_time_limit=datetime.timedelta(seconds=_SECONDS)), rest
    if scheme in ("abfs", "abfss", "az"):
        account = variable("AZURE_STORAGE_ACCOUNT_NAME", "")
        return fs.AzureFileSystem(account, account_key=variable("AZURE_STORAGE_KEY")), rest
    if scheme in ("hdfs", "viewfs", "file"):
        store, path = fs.FileSystem.from_uri(uri)
        return store, path
    store, path = fsspec.core.url_to_fs(uri)
    return fs.PyFileSystem(fs.FSSpecHandler(store)), path


if __name__ == "__main__":
    main(sys.argv[1])

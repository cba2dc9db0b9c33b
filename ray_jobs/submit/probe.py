"""Runs on the cluster before anything is uploaded, and prints what it finds there as JSON.

It is sent as text to whatever Python the cluster has, so it imports nothing of XKD.
"""

import importlib.util
import json
import logging
import os
import sys
import urllib.request
from typing import Any

MARK = "XKD-PROBE "
_SECONDS = 10.0
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
    found["most"] = ray._private.state.state.get_max_resources_from_cluster_config()
    print(MARK + json.dumps(found), flush=True)


def _problem(asked: dict[str, Any], marker: str) -> str:
    """Returns why a place cannot be used; empty if it can."""
    place = asked["place"]
    if place.startswith(marker):
        home = os.environ.get("XKD_HOME")
        if not home:
            return "is relative, and XKD_HOME is set neither here nor on the cluster"
        place = home.rstrip("/") + place[len(marker) :]
    try:
        if place.startswith(("http://", "https://")):
            urllib.request.urlopen(place, timeout=_SECONDS).close()
            return ""
        if "://" in place:
            return _problem_of_uri(place, asked["is_written"])
    except urllib.error.HTTPError:
        return ""  # it answers
    except Exception as error:
        return f"cannot be reached from the cluster: {str(error)[:200]}"
    return _problem_of_path(place, asked["is_written"])


def _problem_of_path(path: str, is_written: bool) -> str:
    if not is_written:
        return "" if os.path.exists(path) else "does not exist on the cluster"
    parent = path
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    return "" if os.access(parent, os.W_OK) else f"cannot be written on the cluster: {parent}"


def _problem_of_uri(uri: str, is_written: bool) -> str:
    import fsspec
    from pyarrow import fs

    try:
        # A key is taken as it is: pyarrow would decode %XX.
        filesystem, path = fs.FileSystem.from_uri(uri)
    except Exception:
        filesystem, path = fsspec.core.url_to_fs(uri)
        return "" if is_written or filesystem.exists(path) else "does not exist"
    if is_written:  # the bucket
        path = path.split("/")[0]
    info = filesystem.get_file_info(path)
    return "" if info.type != fs.FileType.NotFound else f"does not exist: {path}"


if __name__ == "__main__":
    main(sys.argv[1])

"""The places that settings name, for a check from the cluster."""

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from pipelines.config.base import JobConfig
from pipelines.config.weights import REGISTERED, weights_location
from pipelines.paths import absolute_location
from pipelines.tracking.sqlite import sqlite_file

HOME_OF_CLUSTER = "/XKD_HOME_OF_THE_CLUSTER"
"""Stands for the `XKD_HOME` of the cluster's image, which is not known here."""
MLFLOW_OF_CLUSTER = "MLFLOW_TRACKING_URI"
"""Stands for that variable on the cluster."""
_WRITTEN = ("output", "cache")
_READERS = (absolute_location, weights_location)
"""What reads the text of a location: any, or that of weights."""


def places(config: JobConfig) -> list[dict[str, Any]]:
    """Returns what a job reads and writes: setting, place, and whether it is written."""
    found = [
        {"setting": setting, "place": place, "is_written": setting.split(".")[-1] in _WRITTEN}
        for setting, place in _locations(config, ())
    ]
    uri = config.tracking.uri or MLFLOW_OF_CLUSTER
    file = sqlite_file(uri)
    place = uri if file is None else str(file.parent)
    found.append({"setting": "tracking.uri", "place": place, "is_written": False})
    return found


def _locations(model: BaseModel, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _locations(value, (*path, name))
        elif _is_location(Annotated[field.annotation, *field.metadata, None]):
            for place in (value,) if isinstance(value, str) else value or ():
                if not place.startswith(REGISTERED):
                    yield ".".join((*path, name)), place


def _is_location(annotation: Any) -> bool:
    """Whether an annotation, or a part of it, is a `Location`."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        if any(getattr(one, "func", None) in _READERS for one in metadata):
            return True
        return _is_location(inner)
    return any(map(_is_location, get_args(annotation)))

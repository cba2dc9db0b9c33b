"""How users name weights that exist: for `init`, `checkpoint` and `against`."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from pipelines.paths import absolute_location

REGISTERED = "models:/"
_NO_STORE = re.compile(r"https?://|[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")
"""Addresses on the web, and URIs of MLflow as `runs:/...`."""
_REGISTERED = re.compile(r"models:/[^/@]+(?:@[^/@]+|/\d+)")


def weights_location(location: str) -> str:
    """Makes a path absolute and leaves the URI of a registered version unchanged."""
    if location.startswith(REGISTERED):
        if not _REGISTERED.fullmatch(location):
            raise ValueError(f"({location}) must be models:/NAME@ALIAS or models:/NAME/VERSION")
        return location
    if _NO_STORE.match(location):
        raise ValueError(
            f"({location}) must be models:/NAME@ALIAS, models:/NAME/VERSION, or a folder or file "
            "on a disk or in a bucket"
        )
    return absolute_location(location)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Weights = Annotated[str, Field(min_length=1), AfterValidator(weights_location)]
"""A registered version, or what `xkd pull` wrote of one; a checkpoint, or the folder of a run,
whose last checkpoint is taken; a file of the published method."""
WeightsList = Annotated[tuple[Weights, ...], BeforeValidator(_as_list)]

"""Settings of the weights that a training begins from."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from pipelines.paths import absolute_location
from xkd_core.config import Config

REGISTERED = "models:/"
_NO_STORE = re.compile(r"https?://|[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")
"""Addresses on the web, and URIs of MLflow as `runs:/...`."""
_REGISTERED = re.compile(r"models:/[^/@]+(?:@[^/@]+|/\d+)")


def _weights(location: str) -> str:
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


Weights = Annotated[str, Field(min_length=1), AfterValidator(_weights)]
"""A registered version, a checkpoint or the folder of a run, or a file of the published method."""


class InitSettings(Config):
    """What students and teachers begin as, in place of new weights.

    A text in place of this section is its `source`: `init=X` is `init.source=X`.
    """

    source: Weights | None = None
    """A registered version (`models:/NAME@ALIAS` or `models:/NAME/VERSION`), a checkpoint or the
    folder of a run, whose last checkpoint is taken, or a file of the published method. Gives both
    encoders, or the one that it holds; the other one is new."""
    video: Weights | None = None
    """Source of the video encoder, in place of `source`."""
    audio: Weights | None = None
    """Source of the audio encoder, in place of `source`."""
    networks: Literal["students", "teachers", "both"] = "both"
    """Networks that begin from it. With `both`, teachers of new students are their copies."""
    role: Literal["student", "teacher"] | None = None
    """Network of a checkpoint that students and teachers both begin as. Default: students as its
    students and teachers as its teachers. Registered versions hold one network."""
    shared_blocks: Literal["video", "audio"] | None = None
    """Encoder that gives the blocks that `model.variant` shares between video and audio, needed if
    two encoders have different ones."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, values: Any) -> Any:
        return {"source": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _names_weights(self) -> "InitSettings":
        if not (self.source or self.video or self.audio):
            raise ValueError("init must name weights: init.source, init.video or init.audio")
        if self.source and self.video and self.audio:
            raise ValueError(
                f"init.source ({self.source}) must not be set with both init.video and init.audio, "
                "which take its place"
            )
        return self

    def locations(self) -> Iterator[tuple[str, str]]:
        """Yields each source with the name of its setting."""
        for name, location in (("", self.source), (".video", self.video), (".audio", self.audio)):
            if location is not None:
                yield f"init{name}", location

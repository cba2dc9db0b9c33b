"""Settings of the weights that a training begins from."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import model_validator

from pipelines.config.weights import Weights
from xkd_core.config import Config


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
            raise ValueError("source, video or audio must name weights")
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

"""The space of a sweep: a mapping from dotted settings to domains.

A domain of `bundles` has a free name and sets several settings together, as an ablation does.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, PositiveFloat
from pydantic import model_validator as checked

from xkd_core.config import Config

_KINDS = ("choice", "uniform", "loguniform", "integer", "bundles")
_MAX_WHOLE = 2**53
"""Whole numbers up to here are exact in the searchers' floating point."""
_WholeNumber = Annotated[int, Field(ge=-_MAX_WHOLE, le=_MAX_WHOLE)]


class Domain(Config):
    """The domain of one setting; exactly one of the kinds."""

    choice: tuple[Any, ...] | None = None
    """One of these values."""
    uniform: tuple[float, float] | None = None
    """A number from low to high."""
    loguniform: tuple[PositiveFloat, PositiveFloat] | None = None
    """A number from low to high, whose logarithm is uniform."""
    integer: tuple[_WholeNumber, _WholeNumber] | None = None
    """A whole number from low to high, both included."""
    bundles: dict[str, dict[str, Any]] | None = None
    """Named groups of dotted settings with their values."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Searches the setting only in trials in which these other entries of the space have the value,
    or one of the list. Other trials use the value under `pretrain`."""

    @property
    def kind(self) -> str:
        """The kind that is set."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def options(self) -> Sequence[Any] | None:
        """All values of a domain that can be counted, else None."""
        if self.integer is not None:
            return range(self.integer[0], self.integer[1] + 1)
        return tuple(self.bundles) if self.bundles is not None else self.choice

    @property
    def ends(self) -> Sequence[Any]:
        """The values to check: all options of a choice, low and high of a range."""
        for bounds in (self.uniform, self.loguniform, self.integer):
            if bounds is not None:
                return bounds
        return self.options or ()

    @checked(mode="after")
    def _one_kind(self) -> "Domain":
        kinds = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(
                f"kinds ({', '.join(kinds) or 'none'}) must be one of {', '.join(_KINDS)}"
            )
        for bounds in (self.uniform, self.loguniform, self.integer):
            if bounds is not None and bounds[0] >= bounds[1]:
                raise ValueError(
                    f"{kinds[0]} low ({bounds[0]:g}) must be below high ({bounds[1]:g})"
                )
        values = (
            list(self.bundles or self.choice or ()) if kinds[0] in ("choice", "bundles") else [0]
        )
        if not values or any(value in values[:index] for index, value in enumerate(values)):
            raise ValueError(f"{kinds[0]} ({values}) must name values, each once")
        return self


def flat_space(space: Any, prefix: str = "") -> Any:
    """Nested sections as dotted keys, so that both ways to write a space are one.

    >>> flat_space({"objective": {"refinement": {"choice": ["mean", "none"]}}})
    {'objective.refinement': {'choice': ['mean', 'none']}}
    """
    if not isinstance(space, Mapping):
        return space
    result: dict[str, Any] = {}
    for key, value in space.items():
        name = f"{prefix}{key}"
        is_section = isinstance(value, Mapping) and all(
            isinstance(inner, Mapping) for inner in value.values()
        )
        if is_section and value and not set(value) & {*_KINDS, "when"}:
            result |= flat_space(value, f"{name}.")
        else:
            result[name] = value
    return result


def wanted_values(wanted: Any) -> list[Any]:
    """The values of a condition, written as one or as a list."""
    return list(wanted) if isinstance(wanted, list | tuple) else [wanted]

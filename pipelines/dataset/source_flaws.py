"""Counts of sources that gave less than they declare or needed repair."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

COLUMNS = (
    "source",
    "num_frames",
    "has_audio",
    "declares_picture",
    "declares_sound",
    "decode_errors",
    "rebased_clocks",
)
"""Columns that `count_flaws` reads."""


@dataclass(frozen=True)
class SourceFlaws:
    """Counts of accepted sources; a source may count in several."""

    without_picture: int = 0
    """Number of sources that declare a picture and gave none."""
    without_sound: int = 0
    """Number of sources that declare sound and gave none."""
    damaged: int = 0
    """Number of sources with decoding errors, within `limits.max_damaged_fraction`."""
    rebased: int = 0
    """Number of sources whose clock leaps or is missing, so times are counted instead of read."""

    def sentences(self) -> list[str]:
        """Describes the counts above 0."""
        counts = {
            "sources that declare a picture and gave none": self.without_picture,
            "sources that declare sound and gave none": self.without_sound,
            "sources that are damaged in part": self.damaged,
            "sources whose clock leaps or is missing, so that times were counted": self.rebased,
        }
        return [f"{words}: {count:,}" for words, count in counts.items() if count]


def count_flaws(table: pa.Table) -> SourceFlaws:
    """Counts flawed sources in a table with `COLUMNS`; nulls of older datasets do not count."""
    has_flaw = {
        "picture": pc.greater(table["num_frames"], 0),
        "sound": table["has_audio"],
        "declares_picture": table["declares_picture"],
        "declares_sound": table["declares_sound"],
        "damaged": pc.greater(table["decode_errors"], 0),
        "rebased": pc.greater(table["rebased_clocks"], 0),
    }
    flags = pa.table({"source": table["source"]} | has_flaw)
    for name in has_flaw:
        at = flags.column_names.index(name)
        flags = flags.set_column(at, name, pc.fill_null(flags[name].cast(pa.bool_()), False))
    of_source = flags.group_by("source").aggregate([(name, "any") for name in has_flaw])

    def missing(kind: str) -> int:
        has_none = pc.invert(of_source[f"{kind}_any"])
        return int(pc.sum(pc.and_(of_source[f"declares_{kind}_any"], has_none)).as_py() or 0)

    def number(name: str) -> int:
        return int(pc.sum(of_source[f"{name}_any"]).as_py() or 0)

    return SourceFlaws(missing("picture"), missing("sound"), number("damaged"), number("rebased"))

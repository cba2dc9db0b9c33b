"""Counts of sources that gave less than they declare or needed repair.

A container without presentation times, such as AVI, is no flaw: its frames are in order and follow
each other at the declared rate. Such sources are counted apart from those whose clock is wrong.
"""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.media.reasons import ENCRYPTED

COLUMNS = (
    "source",
    "num_frames",
    "has_audio",
    "declares_picture",
    "declares_sound",
    "decode_errors",
    "clock_leaps",
    "sound_gaps",
    "rebased_clocks",
    "held_picture",
    "picture_gaps",
    "video_codec",
    "audio_codec",
)
"""Columns that `count_flaws` reads."""


@dataclass(frozen=True)
class SourceFlaws:
    """Counts of accepted sources; a source may count in several."""

    without_picture: int = 0
    """Number of sources that declare a picture and gave none."""
    without_sound: int = 0
    """Number of sources that declare sound and gave none."""
    encrypted: int = 0
    """Number of sources whose picture or sound is encrypted, which are among those above."""
    with_late_picture: int = 0
    """Number of sources with a picture that some of their clips lack, because it begins later."""
    with_held_picture: int = 0
    """Number of sources whose picture ends before their sound, so that its last frame stays on."""
    with_picture_gaps: int = 0
    """Number of sources with gaps between pictures of a constant rate, as where some were lost."""
    with_partial_sound: int = 0
    """Number of sources with sound that some of their clips lack."""
    damaged: int = 0
    """Number of sources with decoding errors, within `limits.max_damaged_fraction`."""
    leaping: int = 0
    """Number of sources whose clock restarts or jumps, so that later times are counted on."""
    with_sound_gaps: int = 0
    """Number of sources with holes in the sound, which are filled with silence."""
    timed_by_order: int = 0
    """Number of sources that tell no presentation times, so that those of their pictures come from
    the order of frames. This is no flaw."""

    def sentences(self) -> list[str]:
        """Describes the counts above 0."""
        counts = {
            "sources that declare a picture and gave none": self.without_picture,
            "sources that declare sound and gave none": self.without_sound,
            "sources whose picture or sound is encrypted": self.encrypted,
            "sources whose picture begins late, so that clips lack it": self.with_late_picture,
            "sources whose picture ends early, so that its last frame stays on": (
                self.with_held_picture
            ),
            "sources with gaps between pictures, where the one before stays on": (
                self.with_picture_gaps
            ),
            "sources whose sound is missing in part of their clips": self.with_partial_sound,
            "sources that are damaged in part": self.damaged,
            "sources whose clock leaps, so that later times are counted on": self.leaping,
            "sources with holes in the sound, which are silent there": self.with_sound_gaps,
        }
        return [f"{words}: {count:,}" for words, count in counts.items() if count]

    def remarks(self) -> list[str]:
        """Describes what is usual for a container and harmless."""
        if not self.timed_by_order:
            return []
        return [
            "sources whose pictures are timed by the order of frames, as is usual for AVI: "
            f"{self.timed_by_order:,}"
        ]


def count_flaws(table: pa.Table) -> SourceFlaws:
    """Counts flawed sources in a table with `COLUMNS`; nulls of older datasets do not count."""
    has_flaw = {
        "picture": pc.greater(table["num_frames"], 0),
        "sound": table["has_audio"],
        "no_picture": pc.equal(table["num_frames"], 0),
        "no_sound": pc.invert(table["has_audio"]),
        "declares_picture": table["declares_picture"],
        "declares_sound": table["declares_sound"],
        "damaged": pc.greater(table["decode_errors"], 0),
        "leaping": pc.greater(table["clock_leaps"], 0),
        "sound_gaps": pc.greater(table["sound_gaps"], 0),
        "rebased": pc.greater(table["rebased_clocks"], 0),
        "held": pc.greater(table["held_picture"], 0),
        "picture_gaps": pc.greater(table["picture_gaps"], 0),
        "encrypted": pc.or_kleene(
            pc.equal(table["video_codec"], ENCRYPTED), pc.equal(table["audio_codec"], ENCRYPTED)
        ),
    }
    flags = pa.table({"source": table["source"]} | has_flaw)
    for name in has_flaw:
        at = flags.column_names.index(name)
        flags = flags.set_column(at, name, pc.fill_null(flags[name].cast(pa.bool_()), False))
    of_source = flags.group_by("source").aggregate([(name, "any") for name in has_flaw])

    def missing(kind: str) -> int:
        has_none = pc.invert(of_source[f"{kind}_any"])
        return int(pc.sum(pc.and_(of_source[f"declares_{kind}_any"], has_none)).as_py() or 0)

    def partial(kind: str) -> int:
        has_part = pc.and_(of_source[f"{kind}_any"], of_source[f"no_{kind}_any"])
        return int(pc.sum(pc.and_(of_source[f"declares_{kind}_any"], has_part)).as_py() or 0)

    def number(name: str) -> int:
        return int(pc.sum(of_source[f"{name}_any"]).as_py() or 0)

    # Times after a leap are rebased too; without a leap they come from the order of frames.
    leaps, is_rebased = of_source["leaping_any"], of_source["rebased_any"]
    return SourceFlaws(
        without_picture=missing("picture"),
        without_sound=missing("sound"),
        encrypted=number("encrypted"),
        with_late_picture=partial("picture"),
        with_held_picture=number("held"),
        with_picture_gaps=number("picture_gaps"),
        with_partial_sound=partial("sound"),
        damaged=number("damaged"),
        leaping=number("leaping"),
        with_sound_gaps=number("sound_gaps"),
        timed_by_order=int(pc.sum(pc.and_not(is_rebased, leaps)).as_py() or 0),
    )

"""Chooses the picture and the sound stream that together hold the most.

The packet scan tells how much each stream holds. A picture is paired with a sound of its own
program. Among streams of one kind, those that clearly hold less than the best come last: still
images, a tenth of the frame rate, tiny previews, sound that compresses to nothing. Flags and order
decide between the others.
"""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import av.stream
import numpy as np
from av.stream import Disposition
from av.video.stream import VideoStream

from pipelines.media.packets import PacketTable
from pipelines.media.streams.encryption import declares_encryption

MIN_SHARE_OF_LENGTH = 0.5
MIN_SHARE_OF_RATE = 0.25
MIN_SHARE_OF_PIXELS = 0.25
MIN_SHARE_OF_BYTES = 0.125
"""Share of the best stream of a kind; streams with less come last."""

_ATTACHED = Disposition.attached_pic | Disposition.timed_thumbnails
_SECONDARY = (
    Disposition.comment
    | Disposition.karaoke
    | Disposition.hearing_impaired
    | Disposition.visual_impaired
    | Disposition.clean_effects
    | Disposition.descriptions
    | Disposition.non_diegetic
    | Disposition.dependent
    | Disposition.metadata
)


@dataclass(frozen=True)
class Candidate:
    """A stream with the properties that decide the choice."""

    index: int
    kind: Literal["video", "audio"]
    codec: str = ""
    has_decoder: bool = True
    is_encrypted: bool = False
    is_attached: bool = False
    """Whether it is cover art or a thumbnail."""
    is_secondary: bool = False
    """Whether it is secondary, such as a commentary."""
    is_default: bool = False
    num_pixels: int = 0
    num_packets: int = 0
    num_bytes: int = 0
    seconds: float = 0.0

    @property
    def is_usable(self) -> bool:
        """Whether it may give any frame."""
        return bool(
            self.has_decoder and self.num_packets and not self.is_encrypted and not self.is_attached
        )

    @property
    def lasts(self) -> bool:
        """Whether it holds more than one picture or one piece of sound."""
        return self.num_packets > 1


def candidate(stream: av.stream.Stream, packets: PacketTable | None) -> Candidate:
    """Describes a picture or sound stream by its declarations and its packets."""
    # Without a decoder there is no codec context; the type stubs are wrong.
    codec: Any = stream.codec_context
    # Not by its `type`, which changes if a joined transport stream uses a number for both kinds.
    is_video = isinstance(stream, VideoStream)
    num_packets = len(packets) if packets else 0
    is_encrypted = declares_encryption(stream) or bool(packets and packets.is_encrypted.any())
    return Candidate(
        index=stream.index,
        kind="video" if is_video else "audio",
        codec=codec.name if codec else "",
        has_decoder=bool(codec),
        is_encrypted=is_encrypted,
        is_attached=bool(stream.disposition & _ATTACHED),
        is_secondary=bool(stream.disposition & _SECONDARY),
        is_default=bool(stream.disposition & Disposition.default),
        num_pixels=codec.width * codec.height if codec and is_video else 0,
        num_packets=num_packets,
        num_bytes=int(packets.size.sum()) if packets else 0,
        seconds=_seconds(packets) if packets else 0.0,
    )


def _seconds(packets: PacketTable) -> float:
    """Returns the time from the first to the last timestamp; 0 if there is none."""
    times = np.where(np.isnan(packets.pts), packets.dts, packets.pts)
    times = times[~np.isnan(times)]
    return float(np.ptp(times)) if len(times) else 0.0


@dataclass(frozen=True)
class Choice:
    """The indices of the streams to decode."""

    video: int | None
    audio: int | None


def choose(
    candidates: Sequence[Candidate],
    programs: Sequence[Set[int]] = (),
    failed: Set[int] = frozenset(),
) -> Choice:
    """Chooses a picture and a sound.

    Args:
        candidates: The streams, in the order of the container.
        programs: The streams of each program. A container without programs counts as one.
        failed: Streams from which nothing decoded.
    """
    usable = [each for each in candidates if each.is_usable and each.index not in failed]
    in_programs = set(chain.from_iterable(programs))
    outside = [each for each in usable if each.index not in in_programs]
    units = [[each for each in usable if each.index in program] for program in programs]
    pairs = [_pair(unit, outside) for unit in units if unit] or [_pair(outside, ())]
    longest = max(_length(pair) for pair in pairs)

    def rank(pair: Sequence[Candidate | None]) -> tuple[bool, ...]:
        video, audio = pair
        return (
            video is not None and video.lasts and audio is not None,
            video is not None and video.lasts,
            video is not None,
            _length(pair) >= MIN_SHARE_OF_LENGTH * longest,
        )

    video, audio = max(pairs, key=rank)
    return Choice(video.index if video else None, audio.index if audio else None)


def _length(pair: Sequence[Candidate | None]) -> float:
    return max((each.seconds for each in pair if each), default=0.0)


def _pair(
    unit: Sequence[Candidate], outside: Sequence[Candidate]
) -> tuple[Candidate | None, Candidate | None]:
    """Returns the best pair of a program. A missing stream may come from outside all programs."""

    def best(kind: str, rank: Callable[[Sequence[Candidate]], Candidate]) -> Candidate | None:
        own = [each for each in unit if each.kind == kind]
        own = own or [each for each in outside if each.kind == kind]
        return rank(own) if own else None

    return best("video", _best_picture), best("audio", _best_sound)


def _best_picture(videos: Sequence[Candidate]) -> Candidate:
    longest, most_pixels = _most(videos, "seconds"), _most(videos, "num_pixels")
    fastest = max(_rate(each.num_packets, each) for each in videos)

    def rank(each: Candidate) -> tuple[bool, ...]:
        return (
            each.lasts,
            each.seconds >= MIN_SHARE_OF_LENGTH * longest,
            _rate(each.num_packets, each) >= MIN_SHARE_OF_RATE * fastest,
            each.num_pixels >= MIN_SHARE_OF_PIXELS * most_pixels,
            not each.is_secondary,
            each.is_default,
        )

    return max(videos, key=rank)


def _best_sound(audios: Sequence[Candidate]) -> Candidate:
    longest = _most(audios, "seconds")

    def rank(each: Candidate) -> tuple[bool, ...]:
        # Bytes tell silence from sound only if the codec is the same.
        richest = max(_rate(o.num_bytes, o) for o in audios if o.codec == each.codec)
        return (
            each.lasts,
            each.seconds >= MIN_SHARE_OF_LENGTH * longest,
            _rate(each.num_bytes, each) >= MIN_SHARE_OF_BYTES * richest,
            not each.is_secondary,
            each.is_default,
        )

    return max(audios, key=rank)


def _most(candidates: Iterable[Candidate], name: str) -> float:
    return max(getattr(each, name) for each in candidates)


def _rate(amount: int, of: Candidate) -> float:
    """Returns an amount per second; the rate of a single moment is unknown."""
    return amount / of.seconds if of.seconds else 0.0

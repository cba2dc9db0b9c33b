"""Selects the two streams of an open container to decode, and scans their packets."""

from collections.abc import Callable, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import av.container
from av.audio.stream import AudioStream
from av.error import FFmpegError
from av.stream import Discard
from av.video.stream import VideoStream

from pipelines.media.container import (
    DecodeError,
    MediaInfo,
    MediaInput,
    check_codecs,
    check_scrambled,
    describe,
    open_source,
    view_of,
)
from pipelines.media.formats import Formats, is_common
from pipelines.media.orientation import UPRIGHT
from pipelines.media.packets import PacketScan, scan_packets
from pipelines.media.picture import WHOLE, Crop
from pipelines.media.streams import matroska, ogg
from pipelines.media.streams.choice import Candidate, Choice, candidate, choose
from pipelines.media.streams.declarations import Declarations, read_declarations
from pipelines.media.streams.transport_stream import lacks_packets, scrambled_streams
from pipelines.redaction import one_line

MAX_TRIAL_PACKETS = 1000
"""Packets after which a stream that has not decoded at all is given up: more than there are between
two key frames at which a decoder can begin."""
MAX_TRIALS = 8
"""Limit of streams to try; hostile files have thousands."""


@dataclass(frozen=True)
class Selection:
    """The streams of a container to decode."""

    video: int | None
    """Index of the stream."""
    audio: int | None
    declares_picture: bool
    """Whether there is a picture stream besides cover art."""
    declares_sound: bool
    encrypted: frozenset[str]
    """Kinds (video, audio) of which all streams are encrypted."""
    seconds: float
    """Time from the first to the last packet of the longer stream; 0 without timestamps."""
    scan: PacketScan
    declarations: Declarations

    @property
    def crop(self) -> Crop:
        """The borders that the container crops from the picture."""
        return WHOLE if self.video is None else self.declarations.crops.get(self.video, WHOLE)

    def declaring(self, kinds: Set[str]) -> "Selection":
        """Returns the selection of a container that declares streams of other kinds as well."""
        return replace(
            self,
            declares_picture=self.declares_picture or "video" in kinds,
            declares_sound=self.declares_sound or "audio" in kinds,
        )

    def streams(
        self, container: av.container.InputContainer
    ) -> tuple[VideoStream | None, AudioStream | None]:
        """Returns the two streams in a container of the source, and makes it skip all others."""
        video = None if self.video is None else container.streams[self.video]
        audio = None if self.audio is None else container.streams[self.audio]
        assert video is None or isinstance(video, VideoStream)
        assert audio is None or isinstance(audio, AudioStream)
        keep_only(container, {stream.index for stream in (video, audio) if stream is not None})
        return video, audio


def probe(source: MediaInput, formats: Formats = "common") -> MediaInfo:
    """Reads what a source declares and holds, without decoding it."""
    with open_source(source, formats) as container:
        selection = select_streams(container, source, formats)
        streams = selection.streams(container)
        check_codecs(*streams, formats)
        return describe(container, *streams, UPRIGHT)


def select_streams(
    container: av.container.InputContainer,
    source: MediaInput,
    formats: Formats,
    *,
    probes_all: bool = False,
) -> Selection:
    """Chooses the streams of a newly opened container, which is then at its end.

    Args:
        container: The opened source.
        source: Opened again if streams must be tried.
        formats: Which containers and codecs are allowed.
        probes_all: As the container was opened.

    Raises:
        DecodeError: If no stream can be decoded.
    """
    declared: list[VideoStream | AudioStream] = [
        *container.streams.video,
        *container.streams.audio,
    ]
    # Without a decoder there is no codec context; the type stubs are wrong.
    scannable = [stream for stream in declared if stream.codec_context]
    keep_only(container, {stream.index for stream in scannable})
    declarations = read_declarations(container)
    scan = scan_packets(container, scannable)
    scan = ogg.checked(source, container, matroska.checked(source, container, scan))
    candidates = [candidate(stream, scan.tables.get(stream.index)) for stream in declared]
    candidates.sort(key=lambda each: each.index)
    candidates, scan = _with_scrambled(container, source, candidates, scan)
    if not any(each.is_usable for each in candidates):
        raise _nothing_usable(container, source, candidates, scan)
    gives = partial(gives_something, source, formats, probes_all=probes_all)
    choice = _tried(gives, candidates, declarations.programs)
    chosen = [each for each in candidates if each.index in (choice.video, choice.audio)]
    shown = [each for each in candidates if not each.is_attached]
    return Selection(
        video=choice.video,
        audio=choice.audio,
        declares_picture=any(each.kind == "video" for each in shown),
        declares_sound=any(each.kind == "audio" for each in shown),
        encrypted=_encrypted(shown),
        seconds=max(each.seconds for each in chosen),
        scan=scan,
        declarations=declarations,
    )


def _with_scrambled(
    container: av.container.InputContainer,
    source: MediaInput,
    candidates: list[Candidate],
    scan: PacketScan,
) -> tuple[list[Candidate], PacketScan]:
    """Marks streams of a transport stream that are scrambled; counts those that are so in part."""
    if container.format.name != "mpegts" or not lacks_packets(scan):
        return candidates, scan
    with ExitStack() as cleanup:
        scrambled = scrambled_streams(view_of(source, cleanup))
    are_hidden = [container.streams[each.index].id in scrambled for each in candidates]
    num_in_part = sum(
        is_hidden and each.num_packets > 0
        for each, is_hidden in zip(candidates, are_hidden, strict=True)
    )
    marked = [
        replace(each, is_encrypted=each.is_encrypted or (is_hidden and not each.num_packets))
        for each, is_hidden in zip(candidates, are_hidden, strict=True)
    ]
    return marked, replace(scan, num_damaged=scan.num_damaged + num_in_part)


def _encrypted(candidates: Sequence[Candidate]) -> frozenset[str]:
    of_kind = {
        kind: [each.is_encrypted for each in candidates if each.kind == kind]
        for kind in ("video", "audio")
    }
    return frozenset(kind for kind, are in of_kind.items() if are and all(are))


def keep_only(container: av.container.InputContainer, indices: Set[int]) -> None:
    """Lets the demuxer skip the packets of all other streams."""
    for stream in container.streams:
        if stream.index not in indices:
            stream.discard = Discard.all


def _tried(
    gives: Callable[[int], bool],
    candidates: Sequence[Candidate],
    programs: Sequence[Set[int]],
) -> Choice:
    """Chooses streams, and chooses again if one does not decode and another one might."""
    good: set[int] = set()
    failed: set[int] = set()
    while True:
        choice = choose(candidates, programs, failed)
        doubtful = [
            each
            for each in candidates
            if each.index in (choice.video, choice.audio)
            and each.index not in good
            and any(_can_replace(other, each, failed) for other in candidates)
        ]
        if not doubtful or len(good) + len(failed) >= MAX_TRIALS:
            return choice
        for each in doubtful:
            (good if gives(each.index) else failed).add(each.index)


def _can_replace(other: Candidate, chosen: Candidate, failed: Set[int]) -> bool:
    is_another = other.index != chosen.index and other.index not in failed
    return is_another and other.kind == chosen.kind and other.is_usable


def gives_something(
    source: MediaInput, formats: Formats, index: int, *, probes_all: bool = False
) -> bool:
    """Returns whether a stream gives an undamaged frame within its first packets."""
    with open_source(source, formats, probes_all=probes_all) as container:
        stream = container.streams[index]
        assert isinstance(stream, VideoStream | AudioStream)
        if formats == "common" and not is_common(stream):
            return False  # not tried; if no other stream replaces it, `check_codecs` refuses it
        keep_only(container, {index})
        stream.codec_context.thread_count = 1  # a confined process can start no threads
        try:
            for number, packet in enumerate(container.demux(stream)):
                try:
                    if any(not frame.is_corrupt for frame in stream.decode(packet)):
                        return True
                except (FFmpegError, ValueError):
                    pass
                if number >= MAX_TRIAL_PACKETS:
                    break
        except (FFmpegError, IndexError):  # see `packets.read_packets`
            pass
    return False


def _nothing_usable(
    container: av.container.InputContainer,
    source: MediaInput,
    candidates: Sequence[Candidate],
    scan: PacketScan,
) -> DecodeError:
    shown = [each for each in candidates if not each.is_attached]
    decodable = [each for each in shown if each.has_decoder]
    if encrypted := [each for each in shown if each.is_encrypted]:
        names = {"video": "picture", "audio": "sound"}
        kinds = " and ".join(dict.fromkeys(names[each.kind] for each in encrypted))
        return DecodeError("encrypted", f"its {kinds} can only be read with a key")
    if container.format.name == "mpegts":
        check_scrambled(source)
    if not decodable:
        types = sorted({stream.type for stream in container.streams})
        covers = " (a cover alone)" if len(shown) < len(candidates) else ""
        return DecodeError("no_streams", f"streams: {', '.join(types) or 'none'}{covers}")
    why = one_line(scan.errors[0]) if scan.errors else "the streams hold no frame"
    return DecodeError("undecodable", why)

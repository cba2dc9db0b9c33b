"""What a report is made of: plain arrays and numbers, gathered by whoever writes one.

All but the name and the date may be missing. Text in here may come from users' files and is
never trusted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from pipelines.report.curves import Curve
from pipelines.report.embedding_map import EmbeddingMap

Array = NDArray[Any]


@dataclass(frozen=True)
class Reject:
    """A source that could not be used."""

    path: str
    reason: str
    message: str


@dataclass(frozen=True)
class IngestCounts:
    """What became of the sources."""

    sources: int
    accepted: int
    rejected: int
    clips: int
    ignored: int = 0
    """Files that plainly are no media."""
    media_seconds: float | None = None
    flaws: Sequence[str] = ()
    """Sentences about accepted sources that gave less than they declare, or had to be mended."""
    splits: Mapping[str, int] = field(default_factory=dict)
    """Clips of each split."""
    rejects_by_reason: Mapping[str, int] = field(default_factory=dict)
    reason_meanings: Mapping[str, str] = field(default_factory=dict)
    examples: Sequence[Reject] = ()


@dataclass(frozen=True)
class Score:
    """One measure of frozen features, as shares of 1; NaN where it could not be taken."""

    subject: str
    """`video`, `audio`, or what is retrieved by what: `audio_to_video`, `video_to_audio`."""
    measure: str
    """`knn`, `linear`, `recall@1`, ..."""
    trained: float
    untrained: float | None = None
    chance: float | None = None
    """What guessing scores: the share of the most frequent class, or one in all that are there."""
    num_test: int | None = None
    """Clips that were scored, from which the standard error follows."""
    trained_by_class: Sequence[float] = ()
    """One for each of `ReportData.classes`, or none at all."""
    untrained_by_class: Sequence[float] = ()


@dataclass(frozen=True)
class Reconstruction:
    """A clip, what of it was hidden, and what the decoders made of that; either side may lack."""

    title: str
    frames: Array | None = None
    """uint8 (T, H, W, 3)"""
    frames_hidden: Array | None = None
    """Booleans of the token grid (t, h, w)"""
    frames_filled: Array | None = None
    """As `frames`; only what was hidden is shown."""
    spectrogram: Array | None = None
    """(mel bins, time)"""
    spectrogram_hidden: Array | None = None
    """Booleans of the token grid (frequency, time)"""
    spectrogram_filled: Array | None = None


@dataclass(frozen=True)
class Attention:
    """Where the last block's CLS token looks, per token, heads averaged; either side may lack."""

    title: str
    frames: Array | None = None
    frames_attention: Array | None = None
    """(t, h, w)"""
    spectrogram: Array | None = None
    spectrogram_attention: Array | None = None
    """(frequency, time)"""


@dataclass(frozen=True)
class Neighbor:
    """A clip as a thumbnail: a frame, uint8 (H, W, 3), or a spectrogram (mel bins, time)."""

    image: Array
    label: str = ""
    similarity: float | None = None
    is_same_clip: bool = False
    """It is the other side of the query's own clip."""


@dataclass(frozen=True)
class Retrieval:
    """A query of one modality and its nearest neighbors in the other, the nearest first."""

    direction: Literal["audio_to_video", "video_to_audio"]
    query: Neighbor
    neighbors: Sequence[Neighbor]


@dataclass(frozen=True)
class Registered:
    """A version in the model registry."""

    name: str
    version: str
    alias: str = ""
    alias_moved: bool = False
    reason: str = ""
    """Why the alias was moved or not."""


@dataclass(frozen=True)
class ReportData:
    """All that a report tells; only the name and the date are needed."""

    name: str
    created: str
    warnings: Sequence[str] = ()
    """What the reader must know first, such as a collapse."""
    duration_seconds: float | None = None
    ingest: IngestCounts | None = None
    metrics: Mapping[str, Curve] = field(default_factory=dict)
    """Steps and values of each measure by its path, such as `loss/total`."""
    classes: Sequence[str] = ()
    scores: Sequence[Score] = ()
    reconstructions: Sequence[Reconstruction] = ()
    attention: Sequence[Attention] = ()
    maps: Sequence[EmbeddingMap] = ()
    retrievals: Sequence[Retrieval] = ()
    registered: Sequence[Registered] = ()
    tracking_uri: str = ""
    settings: str = ""
    """The resolved settings as YAML."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Dataset id, run ids, code version, versions of the tools."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """A sentence for a section, by its id: why it is empty, or what to know about it."""

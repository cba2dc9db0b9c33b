"""The data of a run's report: plain arrays and numbers, gathered by `run_report`.

Everything but the name and the date may be missing. Texts may come from users' files and are never
trusted.
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
    """A rejected source."""

    path: str
    reason: str
    message: str


@dataclass(frozen=True)
class IngestCounts:
    """The outcome of ingest for all sources."""

    sources: int
    accepted: int
    rejected: int
    clips: int
    ignored: int = 0
    """Files that are no sources, such as hidden files and texts."""
    media_seconds: float | None = None
    flaws: Sequence[str] = ()
    """Sentences about accepted sources that gave less than they declare, or had to be mended."""
    remarks: Sequence[str] = ()
    """Sentences about accepted sources that are no flaws."""
    splits: Mapping[str, int] = field(default_factory=dict)
    """Number of clips in each split."""
    rejects_by_reason: Mapping[str, int] = field(default_factory=dict)
    reason_meanings: Mapping[str, str] = field(default_factory=dict)
    examples: Sequence[Reject] = ()


@dataclass(frozen=True)
class Score:
    """One measure of frozen features, from 0 to 1; NaN if it was not measured."""

    subject: str
    """`video`, `audio`, or a direction of retrieval: `audio_to_video`, `video_to_audio`."""
    measure: str
    """`knn`, `linear`, `recall@1`, ..."""
    trained: float
    untrained: float | None = None
    chance: float | None = None
    """The score of guessing: the share of the most frequent class, or 1 / candidates."""
    num_test: int | None = None
    """Number of clips scored, which gives the standard error."""
    trained_by_class: Sequence[float] = ()
    """One for each of `ReportData.classes`, or empty."""
    untrained_by_class: Sequence[float] = ()
    interval: tuple[float, float] | None = None
    """95 % interval of `trained` over sources."""
    gain_interval: tuple[float, float] | None = None
    """Of trained minus untrained, paired by source."""


@dataclass(frozen=True)
class Reconstruction:
    """A clip, its hidden tokens, and their reconstruction; either modality may be missing."""

    title: str
    frames: Array | None = None
    """uint8 (T, H, W, 3)"""
    frames_hidden: Array | None = None
    """Booleans of the token grid (t, h, w)"""
    frames_filled: Array | None = None
    """As `frames`; only the hidden tokens are shown."""
    spectrogram: Array | None = None
    """(mel bins, time)"""
    spectrogram_hidden: Array | None = None
    """Booleans of the token grid (frequency, time)"""
    spectrogram_filled: Array | None = None


@dataclass(frozen=True)
class Attention:
    """Attention of the last block's CLS token, averaged over heads; a modality may be missing."""

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
    """Whether it is the query's own clip, in its other modality."""


@dataclass(frozen=True)
class Retrieval:
    """A query in one modality and its neighbors in the other, nearest first."""

    direction: Literal["audio_to_video", "video_to_audio"]
    query: Neighbor
    neighbors: Sequence[Neighbor]


@dataclass(frozen=True)
class RegisteredModel:
    """A version in the model registry, as the report shows it."""

    name: str
    version: str
    alias: str = ""
    alias_moved: bool = False
    reason: str = ""
    """Why the alias moved or not."""


@dataclass(frozen=True)
class ReportData:
    """All data of a report; only the name and the date are required."""

    name: str
    created: str
    warnings: Sequence[str] = ()
    """Warnings at the top of the page, such as a collapse."""
    duration_seconds: float | None = None
    ingest: IngestCounts | None = None
    metrics: Mapping[str, Curve] = field(default_factory=dict)
    """Steps and values of each metric by its path, such as `loss/total`."""
    classes: Sequence[str] = ()
    scores: Sequence[Score] = ()
    marks: Sequence[str] = ()
    """What sets the scores apart from those of a whole official split, or of the dataset that was
    expected; shown with every figure."""
    reconstructions: Sequence[Reconstruction] = ()
    attention: Sequence[Attention] = ()
    maps: Sequence[EmbeddingMap] = ()
    retrievals: Sequence[Retrieval] = ()
    registered: Sequence[RegisteredModel] = ()
    tracking_uri: str = ""
    settings: str = ""
    """The resolved settings as YAML."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Dataset id, run ids, code version, versions of the tools."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """A sentence for a section by its id: why it is empty, or a remark."""

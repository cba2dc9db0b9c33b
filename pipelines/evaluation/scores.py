"""Scores of frozen features and their intervals over sources: the content of `scores.json`.

`classifiers.score` gives `FeatureScores`; an evaluation adds what was scored and on what, and
writes the whole as `scores.json` (`Scores`). Accuracies are shares from 0 to 1.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pipelines.evaluation.intervals import Figure

MEASURES = {
    "knn": "nearest neighbors",
    "linear": "linear probe",
    "svm": "linear SVM",
    "attentive": "attentive probe",
    "layers": "linear probe of several layers",
    "finetune": "fine-tuning",
    "retrieval": "cross-modal retrieval",
}
"""The measures with their names for people."""
SUBJECTS = {
    "video": "video",
    "audio": "audio",
    "both": "video and audio joined",
    "late": "video and audio, mean of scores",
    "both_video_only": "joined, sound missing",
    "both_audio_only": "joined, picture missing",
    "audio_to_video": "audio to video",
    "video_to_audio": "video to audio",
}
"""What is scored, with names for people."""
METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "map": "mAP",
    "auc": "AUC",
    "d_prime": "d'",
    "top1_chosen_on_test": "top-1, chosen on the test clips",
    "map_chosen_on_test": "mAP, chosen on the test clips",
}


@dataclass(frozen=True)
class MeasureScore:
    """What one classifier found; its first figure is its score."""

    figures: Mapping[str, Figure]
    """`top1` and `top5`, or, with several labels a clip, `map`, `auc` and `d_prime`; with
    `selection=test` also the best on the test clips, as `top1_chosen_on_test`."""
    per_class: tuple[float | None, ...] = ()
    """Accuracy or average precision in the order of the classes; None for one without a clip."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Clips by true class (rows) and named class; empty with many classes or several labels."""
    penalty: float | None = None
    """The weight of the L2 penalty that cross-validation chose."""
    is_exact: bool = True
    """False for a classifier that trained on batches."""
    folds: tuple[float, ...] = ()
    """The score of each official fold, of which `score` is the mean."""

    @property
    def score(self) -> Figure:
        """Top-1 accuracy, or mAP."""
        return next(iter(self.figures.values()))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "MeasureScore":
        """Reads what `asdict` wrote; unknown keys, of a later version, are left out."""
        known = {one.name: values[one.name] for one in fields(cls) if one.name in values}
        known["figures"] = {name: Figure(**found) for name, found in known["figures"].items()}
        known["per_class"] = tuple(known["per_class"])
        known["confusion"] = tuple(tuple(row) for row in known["confusion"])
        known["folds"] = tuple(known.get("folds", ()))
        return cls(**known)


@dataclass(frozen=True)
class NetworkScore:
    """Scores of the features of one network, of one modality or of both."""

    measures: Mapping[str, MeasureScore]
    majority: float
    """Accuracy of always naming the most frequent class; mAP of guessing with several labels."""
    num_train: int
    """Labelled clips with this modality that the classifiers learn from."""
    num_test: int
    """Labelled clips with this modality that are scored."""
    num_sources: int
    """Sources of those; intervals are over them."""

    @property
    def accuracy(self) -> dict[str, float]:
        """Scores by measure."""
        return {name: found.score.value for name, found in self.measures.items()}

    @property
    def by_class(self) -> dict[str, tuple[float | None, ...]]:
        """Scores of the classes by measure."""
        return {name: found.per_class for name, found in self.measures.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "NetworkScore":
        """Reads what `asdict` wrote; unknown keys, of a later version, are left out."""
        known = {one.name: values[one.name] for one in fields(cls)}
        known["measures"] = {
            name: MeasureScore.from_json(found) for name, found in known["measures"].items()
        }
        return cls(**known)


@dataclass(frozen=True)
class RetrievalScore:
    """How well clips of one modality find their own clip in the other."""

    figures: Mapping[str, Figure]
    """`recall@1`, `recall@5`, `recall@10` and `median_rank`, which begins at 1; with a size as in
    `recall@1/100`, among so many clips."""
    chance: Mapping[str, float]
    """The same figures of guessing."""
    num_clips: int
    """Clips that ask and that are found, one of each source."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RetrievalScore":
        """Reads what `asdict` wrote; unknown keys, of a later version, are left out."""
        known = {one.name: values[one.name] for one in fields(cls)}
        known["figures"] = {name: Figure(**found) for name, found in known["figures"].items()}
        return cls(**known)


@dataclass(frozen=True)
class FeatureScores:
    """What `score` finds in features."""

    classes: tuple[str, ...]
    num_train: int
    num_test: int
    """Clips of the splits, with a label or without."""
    reason: str
    """Why nothing is scored; empty if something is."""
    modalities: Mapping[str, Mapping[str, NetworkScore]]
    """By subject (`video`, `audio`, `both`, `late`) and network (`trained`, `untrained`)."""
    gains: Mapping[str, Figure] = field(default_factory=dict)
    """Trained minus untrained with paired intervals, by path such as `video/knn`."""
    retrieval: Mapping[str, Mapping[str, RetrievalScore]] = field(default_factory=dict)
    """By direction (`audio_to_video`, `video_to_audio`) and network."""
    notes: tuple[str, ...] = ()
    """Sentences about clips that could not be scored."""
    over_reference: Mapping[str, Figure] = field(default_factory=dict)
    """Trained minus the encoder it is compared with (network `reference`), by path as `gains`."""

    def accuracies(self) -> dict[str, float]:
        """Scores by path, such as `video/trained/knn`."""
        return {path: found.value for path, found in self.figures().items() if path.count("/") == 2}

    def figures(self) -> dict[str, Figure]:
        """All figures by path: `video/trained/knn`, `video/trained/knn/top5`, `.../recall_at_5`."""
        found = {}
        for subject, networks in self.modalities.items():
            for network, scores in networks.items():
                for measure, one in scores.measures.items():
                    path = f"{subject}/{network}/{measure}"
                    (_, first), *others = one.figures.items()
                    found[path] = first
                    found |= {f"{path}/{name}": figure for name, figure in others}
        for direction, by_network in self.retrieval.items():
            for network, ranks in by_network.items():
                for name, figure in ranks.figures.items():
                    found[f"{direction}/{network}/retrieval/{_key(name)}"] = figure
        return found

    def gain_figures(self) -> dict[str, Figure]:
        """All gains by path: `video/gain/knn`, `audio_to_video/gain/retrieval/recall_at_5`."""
        found = {}
        kinds = {"gain": self.gains, "over_reference": self.over_reference}
        for kind, gains in kinds.items():
            for path, gain in gains.items():
                subject, name = path.split("/", 1)
                of = f"{kind}/retrieval" if subject in self.retrieval else kind
                found[f"{subject}/{of}/{_key(name)}"] = gain
        return found


def _key(name: str) -> str:
    """A figure's name without the characters that names in MLflow may not have."""
    return name.replace("@", "_at_").replace("/", "_of_")


@dataclass(frozen=True)
class Scores:
    """The content of `scores.json`: what was scored, on what, and the result.

    Two results are comparable only if their `dataset_id` is equal.
    """

    checkpoint: str
    step: int
    """Training steps done."""
    pretrain_run_id: str
    evaluate_run_id: str
    dataset_id: str
    role: str
    """`student` or `teacher`."""
    num_windows: int
    """Windows of a clip whose features are averaged."""
    found: FeatureScores
    reference: str = ""
    """The encoders that these were compared with, as they were named; empty for none."""
    official: Mapping[str, Any] | None = None
    """Share of an official split that was there (`OfficialShare`); None if it is none."""
    marks: tuple[str, ...] = ()
    """What sets these figures apart from those of the whole split and of the expected dataset;
    shown wherever a figure is."""

    def to_json(self) -> dict[str, Any]:
        """The values of `scores.json`, on one level but for the modalities."""
        values = asdict(self)
        return values | values.pop("found")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Scores":
        """Reads what `to_json` gave.

        Raises:
            KeyError: if a value is missing.
        """
        found = FeatureScores(
            classes=tuple(values["classes"]),
            num_train=values["num_train"],
            num_test=values["num_test"],
            reason=values["reason"],
            modalities={
                subject: {name: NetworkScore.from_json(one) for name, one in networks.items()}
                for subject, networks in values["modalities"].items()
            },
            gains={name: Figure(**one) for name, one in values["gains"].items()},
            retrieval={
                way: {name: RetrievalScore.from_json(one) for name, one in networks.items()}
                for way, networks in values["retrieval"].items()
            },
            notes=tuple(values["notes"]),
            over_reference={
                name: Figure(**one) for name, one in values.get("over_reference", {}).items()
            },
        )
        names = [one.name for one in fields(cls) if one.name != "found"]
        added = ("reference", "official", "marks")
        names = [name for name in names if name in values or name not in added]
        values = {**values, "marks": tuple(values.get("marks", ()))}
        return cls(**{name: values[name] for name in names}, found=found)


def standard_error(share: float, count: int | None) -> float:
    """Returns the standard error of a share of `count` clips; 0 if the count is unknown."""
    if not count or not math.isfinite(share):
        return 0.0
    share = min(max(share, 0.0), 1.0)
    return math.sqrt(share * (1 - share) / count)


def percent(share: float | None) -> str:
    r"""Formats a share as a percentage, with a space that does not break.

    >>> percent(0.5), percent(None)
    ('50.0\xa0%', 'not measured')
    """
    if share is None or not math.isfinite(share):
        return "not measured"
    return f"{100 * share:.1f}\u00a0%"


def interval_text(figure: Figure) -> str:
    """Formats the bounds of a share for people; empty without an interval.

    >>> interval_text(Figure(0.5, 0.41, 0.6)), interval_text(Figure(0.5))
    ('[41.0, 60.0]', '')
    """
    if figure.low is None or figure.high is None:
        return ""
    return f"[{100 * figure.low:.1f}, {100 * figure.high:.1f}]"

"""Fits the classifiers of all folds as Ray tasks, each with the arrays that it needs alone.

    driver          the small fields of the features; the arrays stay in Ray's object store
    task            one network, one subject, one measure, one fold:
                    maps its one or two arrays, and copies the rows that it learns from

Tasks name the memory that they take, and Ray starts no more of them than a node has memory for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from numpy.typing import NDArray

from pipelines.config.evaluate import EvaluateSettings
from pipelines.evaluation.features import Features
from pipelines.evaluation.probes.classifiers import Results
from pipelines.evaluation.probes.fits import FineTune, Fit, Fitter, kind_of
from pipelines.evaluation.probes.folds import Planned
from pipelines.evaluation.probes.solvers import BYTES_A_NUMBER, Fitted
from pipelines.evaluation.sides import Sides
from pipelines.evaluation.tasks import result_of, within_a_node
from xkd_core.encoders import MODALITIES

Array = NDArray[Any]
Key = tuple[str, str]


@dataclass(frozen=True)
class StoredFeatures:
    """Features whose large arrays are in Ray's object store."""

    features: Features
    """With arrays that are views of the store: reading them takes no memory of this process."""
    references: Mapping[Key, Any]

    @classmethod
    def receive(cls, stream: Any) -> "StoredFeatures":
        """Takes what a task of `features.extract` yields.

        Raises:
            UserError: What the task raised.
        """
        small, keys = result_of(next(stream))
        references, arrays = {}, {}
        for key in keys:
            references[key] = next(stream)
            arrays[key] = result_of(references[key])
        return cls(small.with_large(arrays), references)

    def fit_all(
        self, planned: Planned, settings: EvaluateSettings, fine_tune: FineTune | None
    ) -> list[Results]:
        """Fits all classifiers of all folds at the same time; see `folds.FitAll`.

        Raises:
            UserError: What a task raised.
        """
        rows = [
            [(fit, sides) for fit, sides in fits if fit.measure != "finetune"]
            for _, fits in planned
        ]
        running = [
            {fit: self._start(part, fit, sides, settings) for fit, sides in fits}
            for (part, _), fits in zip(planned, rows, strict=True)
        ]
        tuned = [
            [(fit, sides) for fit, sides in fits if fit.measure == "finetune"]
            for _, fits in planned
        ]
        started = [
            {fit: fine_tune(part, fit.subject, sides) for fit, sides in fits} if fine_tune else {}
            for (part, _), fits in zip(planned, tuned, strict=True)
        ]
        return [
            {fit: result_of(one) for fit, one in tasks.items()}
            | {fit: {fit.subject: wait()} for fit, wait in waits.items()}
            for tasks, waits in zip(running, started, strict=True)
        ]

    def _start(self, part: Features, fit: Fit, sides: Sides, settings: EvaluateSettings) -> Any:
        keys = [key for key in self.references if _needs(key, fit)]
        sizes = [self.features.large()[key] for key in keys]
        task = ray.remote(num_gpus=1 if _takes_gpu(fit, sizes, settings) else 0)(_fit)
        small = part.with_large({})
        return task.options(memory=within_a_node(_bytes(sizes, settings))).remote(
            small, fit, sides, settings, keys, *(self.references[key] for key in keys)
        )


def _fit(
    small: Features,
    fit: Fit,
    sides: Sides,
    settings: EvaluateSettings,
    keys: Sequence[Key],
    *arrays: Array,
) -> dict[str, Fitted]:
    features = small.with_large(dict(zip(keys, arrays, strict=True)))
    return Fitter(features, fit.network, settings).fit(fit.subject, sides, fit.measure)


def _needs(key: Key, fit: Fit) -> bool:
    """Whether a classifier reads an array."""
    field, path = key
    *kind, modality, network = path.split("/")
    modalities = MODALITIES if fit.subject == "both" else (fit.subject,)
    if network != fit.network or modality not in modalities or field == "retrieval":
        return False
    if fit.measure == "attentive":
        return field == "tokens"
    if field == "views":
        return fit.subject != "both" and kind == [kind_of(fit.measure)]
    return field == ("layers" if fit.measure == "layers" else "matrices")


def _takes_gpu(fit: Fit, arrays: Sequence[Array], settings: EvaluateSettings) -> bool:
    if not settings.use_gpu or fit.measure == "knn":
        return False
    return fit.measure == "attentive" or not _is_exact(arrays, settings)


def _is_exact(arrays: Sequence[Array], settings: EvaluateSettings) -> bool:
    """Whether scikit-learn surely solves it; the rows that are learned from may be fewer."""
    return sum(one.size for one in arrays) * BYTES_A_NUMBER <= settings.max_solver_gb * 1e9


def _bytes(arrays: Sequence[Array], settings: EvaluateSettings) -> float:
    """The memory of a task at most: a copy of its rows, and what the solver takes."""
    size = float(sum(one.nbytes for one in arrays))
    solver = float(sum(one.size for one in arrays)) * BYTES_A_NUMBER
    return 2 * size + min(solver, settings.max_solver_gb * 1e9)

"""Fits the classifiers of an evaluation one by one and keeps each in a file.

A benchmark that is stopped goes on with the first classifier that has no file. A folder belongs to
one encoder, dataset, and list of settings: whoever changes one of them names another folder.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config.evaluate import EvaluateSettings
from pipelines.evaluation.features import Features
from pipelines.evaluation.probes.classifiers import Results
from pipelines.evaluation.probes.fits import FineTune, Fit, Fitter
from pipelines.evaluation.probes.folds import Planned
from pipelines.evaluation.probes.solvers import Fitted
from pipelines.evaluation.sides import Sides
from pipelines.files import replacing


@dataclass(frozen=True)
class KeptFits:
    """Fits all classifiers; see `folds.FitAll`."""

    folder: Path

    def __call__(
        self, planned: Planned, settings: EvaluateSettings, fine_tune: FineTune | None
    ) -> Sequence[Results]:
        """Returns what the classifiers of each fold gave, from their files where there are some."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return [
            {
                fit: self._fit(number, features, fit, sides, settings, fine_tune)
                for fit, sides in fits
            }
            for number, (features, fits) in enumerate(planned)
        ]

    def _fit(
        self,
        number: int,
        features: Features,
        fit: Fit,
        sides: Sides,
        settings: EvaluateSettings,
        fine_tune: FineTune | None,
    ) -> dict[str, Fitted]:
        file = self.folder / f"{number}-{fit.network}-{fit.subject}-{fit.measure}.npz"
        if file.exists():
            return _read(file)
        started = time.monotonic()
        if fit.measure == "finetune":
            assert fine_tune is not None
            found = {fit.subject: fine_tune(features, fit.subject, sides)()}
        else:
            found = Fitter(features, fit.network, settings).fit(fit.subject, sides, fit.measure)
        _write(file, found)
        print(f"{file.parent.name} {file.stem}: {time.monotonic() - started:.1f} s", flush=True)
        return found


def _write(file: Path, found: dict[str, Fitted]) -> None:
    arrays: dict[str, Any] = {}
    for subject, one in found.items():
        arrays[f"{subject}:scores"] = one.scores
        penalty = np.nan if one.penalty is None else one.penalty
        arrays[f"{subject}:rest"] = np.array([penalty, one.is_exact, one.is_probability])
    with replacing(file) as partial, partial.open("wb") as content:
        np.savez(content, allow_pickle=False, **arrays)


def _read(file: Path) -> dict[str, Fitted]:
    with np.load(file, allow_pickle=False) as arrays:
        found = {}
        for name in arrays.files:
            subject, _, kind = name.partition(":")
            if kind == "scores":
                penalty, is_exact, is_probability = arrays[f"{subject}:rest"].tolist()
                found[subject] = Fitted(
                    arrays[name],
                    None if np.isnan(penalty) else penalty,
                    bool(is_exact),
                    bool(is_probability),
                )
        return found

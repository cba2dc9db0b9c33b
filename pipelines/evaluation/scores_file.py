"""Reads the `scores.json` of an evaluation."""

import json
from typing import Any

from pipelines.evaluation.scores import Scores
from pipelines.storage import AnyPath


class OlderScoresError(ValueError):
    """A `scores.json` of release 0.1.0, which has no intervals."""


def read_scores(path: AnyPath) -> Scores:
    """Reads a `scores.json`.

    Raises:
        OlderScoresError: if an older release wrote it.
        ValueError: if it is none.
        OSError: if it cannot be read.
    """
    values: Any = None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Scores.from_json(values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(values, dict) and "evaluate_run_id" in values and "gains" not in values:
            raise OlderScoresError(f"{path} was written by an older release") from error
        raise ValueError(f"{path} is no scores.json of an evaluation") from error

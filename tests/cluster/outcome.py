"""What a main job leaves in the bucket and in MLflow, and how two of them differ."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.parquet as pq

from pipelines.filesystems import filesystem_of
from pipelines.models.checkpoints import find_checkpoint, read_info
from pipelines.storage import path_of
from pipelines.tracking.runs import RunRef
from tests.cluster.stand import HOME, Stand
from tests.helpers.training import curve

REDONE = 1e-4
"""Share by which the loss of a step that was done again may differ from before."""


@dataclass(frozen=True)
class Outcome:
    """Rows, losses and scores."""

    dataset_id: str
    clips: int
    rejects: dict[str, int]
    rows: int
    losses: dict[str, float]
    """By step."""
    scores: dict[str, Any]


def outcome_of(stand: Stand, name: str) -> Outcome:
    """Reads what the main job of a name has left."""
    folder = f"{HOME}/runs/{name}"
    manifest = json.loads(path_of(f"{folder}/clips/manifest.json").read_text())
    filesystem, path = filesystem_of(f"{folder}/clips/clips")
    identities = pq.read_table(path, filesystem=filesystem, columns=["clip_id"])["clip_id"]
    rows = identities.to_pylist()
    assert len(rows) == len(set(rows)), f"{name}: clips are there twice"
    checkpoint = find_checkpoint(f"{folder}/pretrain/{name}")
    run = RunRef(stand.environment["MLFLOW_TRACKING_URI"], "", read_info(checkpoint).run_id)
    losses = curve(run, redone=REDONE)
    assert run.client().get_run(run.run_id).info.status == "FINISHED"
    scores = json.loads(path_of(f"{folder}/evaluate/scores.json").read_text())
    return Outcome(
        dataset_id=manifest["dataset_id"],
        clips=manifest["clips"],
        rejects=manifest["rejects_by_reason"],
        rows=len(rows),
        losses={str(step): value for step, value in losses.items()},
        scores=scores["modalities"],
    )


def difference(one: Outcome, other: Outcome) -> str:
    """Describes how two outcomes differ; fails if rows or steps do."""
    for name in ("dataset_id", "clips", "rejects", "rows"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.losses.keys() == other.losses.keys(), "steps"
    most = max(abs(one.losses[step] - value) / abs(value) for step, value in other.losses.items())
    assert most < 1e-3, f"losses differ by {most:.1e}"
    ours, theirs = (dict(_numbers(asdict(o)["scores"], "")) for o in (one, other))
    assert ours.keys() == theirs.keys(), "scores"
    changed = [name for name, value in theirs.items() if ours[name] != value]
    text = "losses equal to the bit" if most == 0 else f"losses within {most:.0e}"
    scores = "scores equal" if not changed else f"{len(changed)} of {len(theirs)} scores differ"
    return f"rows equal, {len(one.losses)} losses: {text}, {scores}"


def _numbers(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}/{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _numbers(inner, f"{name}/{index}")
    else:
        yield name, value

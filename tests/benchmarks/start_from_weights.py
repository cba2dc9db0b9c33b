"""Is going on from an encoder that exists better than new weights, for the same steps?

    python tests/benchmarks/start_from_weights.py weights=runs/made clips=real_clips folder=out \
        [epochs=4] [seeds=3] [learning_rate=0.001]

Trains the smoke recipe on `clips`, for each seed from new weights and from `weights`
(`init`), and scores both, the given weights themselves and untrained networks on the held-out
clips. A difference is the mean over seeds of each clip's result, and its interval is over sources:
both networks are scored on the same clips. The same command goes on where it stopped.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import yaml
from numpy.typing import NDArray
from program import environment, options

from pipelines.config.base import RaySettings
from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.pretrain import PretrainConfig
from pipelines.evaluation.checks import networks_to_score
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.intervals import Figure, difference_of, figure, mean_of
from pipelines.evaluation.outcomes import OUTCOMES_FILE, RETRIEVAL_RECALL, Outcomes
from pipelines.evaluation.retrieval import DIRECTIONS, recalled
from pipelines.progress import ignore_progress
from pipelines.registry.encoder_sources import encoder_sources
from pipelines.tracking.runs import metric_histories
from pipelines.training.pretrain import pretrain
from ray_jobs.cli.cluster import connected

REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULTS = {
    "weights": "",
    "clips": "",
    "folder": "",
    "epochs": "4",
    "seeds": "3",
    "learning_rate": "0.001",
}
MEASURES = ("video/knn", "video/linear", "audio/knn", "audio/linear")
RETRIEVAL = f"retrieval, recall@{RETRIEVAL_RECALL}"
PAIRS = (("begun", "new"), ("begun", "given"), ("given", "untrained"), ("new", "untrained"))
Array = NDArray[Any]
Results = dict[str, list[Outcomes]]
"""Of each way, an evaluation for each seed."""


def main() -> None:
    """Prints a table, and one JSON line last."""
    given = options(DEFAULTS)
    if not (given["weights"] and given["clips"] and given["folder"]):
        raise SystemExit(__doc__)
    folder = Path(given["folder"]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    results: Results = {"new": [], "begun": [], "given": []}
    losses: dict[str, list[float]] = {"new": [], "begun": []}
    with connected(RaySettings()):
        for seed in range(int(given["seeds"])):
            for way in ("new", "begun"):
                config = _training(given, folder, way, seed)
                trained = pretrain(config, on_progress=ignore_progress)
                curve = metric_histories(trained.run)["loss/reconstruction/video"][1]
                losses[way].append(float(np.mean(curve[-3:])))
                results[way].append(_scored(given, folder, str(trained.checkpoint), config.name))
        results["given"] = [_scored(given, folder, given["weights"], "given")]
    print(_table(results))
    print(f"video reconstruction at the end: {losses}")
    found = {
        "benchmark": "start_from_weights",
        **environment("torch", "ray", "mlflow"),
        "settings": given,
        "scores": {way: {name: _mean(results, way, name) for name in _names()} for way in results},
        "differences": {
            f"{one} - {other}": {
                name: vars(_difference(results, one, other, name)) for name in _names()
            }
            for one, other in PAIRS
        },
        "losses": losses,
    }
    print(json.dumps(found))


def _training(given: dict[str, str], folder: Path, way: str, seed: int) -> PretrainConfig:
    values = yaml.safe_load((REPOSITORY / "conf/recipe/smoke.yaml").read_text())
    values["optimizer"] |= {"warmup_epochs": 1, "learning_rate": float(given["learning_rate"])}
    values |= {"epochs": float(given["epochs"]), "seed": seed, "name": f"{way}-{seed}"}
    if way == "begun":
        values["init"] = given["weights"]
    return PretrainConfig(
        **values,
        dataset=given["clips"],
        output=str(folder / "trained"),
        tracking={"uri": f"sqlite:///{folder}/mlflow.db"},
        checkpoint_every=1000,
    )


def _scored(given: dict[str, str], folder: Path, checkpoint: str, name: str) -> Outcomes:
    """Scores a checkpoint, or reads what an earlier call found."""
    output = folder / "scored" / name
    if (output / OUTCOMES_FILE).exists():
        return Outcomes.read(output / OUTCOMES_FILE)
    config = EvaluateConfig(
        checkpoint=checkpoint,
        dataset=given["clips"],
        output=str(output),
        measures=("knn", "linear", "retrieval"),
        fusion=(),
        untrained_baseline=name.startswith("new"),
        tracking={"uri": f"sqlite:///{folder}/mlflow.db"},
    )
    sources = encoder_sources(
        config.checkpoint,
        setting="checkpoint",
        role=config.role,
        published=config.published,
        tracking=config.tracking,
    )
    networks = networks_to_score(config, sources, ())
    return evaluate(config, networks, on_progress=ignore_progress).outcomes


def _names() -> tuple[str, ...]:
    return (*MEASURES, RETRIEVAL)


def _values(results: Results, way: str, name: str) -> tuple[Array, Array]:
    """Results of each clip, the mean over seeds, and the clips' sources."""
    network = "untrained" if way == "untrained" else "trained"
    outcomes: Sequence[Outcomes] = results["new" if way == "untrained" else way]
    if name == RETRIEVAL:
        values = [
            np.mean(
                [recalled(one.ranks[f"{to}/{network}"], RETRIEVAL_RECALL) for to in DIRECTIONS], 0
            )
            for one in outcomes
        ]
        return np.mean(values, axis=0), np.arange(len(values[0]))
    modality, measure = name.split("/")
    values = [one.values[f"{modality}/{network}/{measure}"] for one in outcomes]
    mean = np.mean(values, axis=0)
    scored = np.isfinite(mean)
    return mean[scored], outcomes[0].sources[scored]


def _mean(results: Results, way: str, name: str) -> float:
    return float(_values(results, way, name)[0].mean())


def _difference(results: Results, one: str, other: str, name: str) -> Figure:
    first, sources = _values(results, one, name)
    second, _ = _values(results, other, name)
    return figure(difference_of(mean_of(first), mean_of(second)), sources)


def _table(results: Results) -> str:
    ways = ("untrained", "given", "new", "begun")
    lines = ["| % | " + " | ".join([*ways, *(f"{a} - {b}" for a, b in PAIRS)]) + " |"]
    lines.append("|---" * (1 + len(ways) + len(PAIRS)) + "|")
    for name in _names():
        cells = [f"{100 * _mean(results, way, name):.1f}" for way in ways]
        for one, other in PAIRS:
            found = _difference(results, one, other, name)
            bounds = [100 * (bound or 0.0) for bound in (found.low, found.high)]
            cells.append(f"{100 * found.value:+.1f} [{bounds[0]:.1f}, {bounds[1]:.1f}]")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

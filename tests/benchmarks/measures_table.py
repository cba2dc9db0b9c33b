"""What does every measure say of untrained, trained and unlearned features of the same clips?

    python tests/benchmarks/measures_table.py folder=OUT clips=CLIPS made=RUN new=RUN begun=RUN
    python tests/benchmarks/measures_table.py folder=OUT clips=CLIPS made=RUN dataset=esc50 \\
        lists=LISTS

Columns are the network of `made` before its first step, and those of up to three trainings: on made
clips, on these clips from new weights, and on these clips begun from those of the made ones.
`tuned` names columns that are fine-tuned too. Features without learning: mean and deviation of each
mel bin of the sound; mean color and change of the cells of a 4 x 4 grid of the picture.
`folder` keeps features and what every classifier gave: the same command goes on where it stopped.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from kept_fits import KeptFits
from program import environment, options

from pipelines.config.evaluate import EvaluateSettings, OfficialSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.evaluation.features import Features, features_of
from pipelines.evaluation.finetune import fine_tune, labelled
from pipelines.evaluation.intervals import Figure
from pipelines.evaluation.networks import EncoderSource, checkpoint_source, load_network
from pipelines.evaluation.official import choose_clips
from pipelines.evaluation.outcomes import Outcomes, paired
from pipelines.evaluation.probes.folds import score_folds
from pipelines.evaluation.probes.solvers import UNSEEN, Fitted
from pipelines.evaluation.scores import FeatureScores, interval_text
from pipelines.models.checkpoints import find_checkpoint
from pipelines.progress import ignore_progress
from xkd_core.config import AudioConfig
from xkd_core.views.log_mel import LogMel

DEFAULTS = {
    "clips": "",
    "made": "",
    "new": "",
    "begun": "",
    "tuned": "made",
    "folder": "",
    "dataset": "",
    "lists": "",
    "epochs": "20",
    "folds": "",
    "attentive_steps": "150",
}
FROZEN = ("knn", "linear", "svm", "layers", "attentive", "retrieval")
TITLES = {
    "untrained": "untrained",
    "made": "made clips",
    "new": "these clips",
    "begun": "begun from made",
    "plain": "no learning",
}
RECIPE = {
    "batch_size": 32,
    "learning_rate": 2e-3,
    "layer_decay": 0.75,
    "warmup_epochs": 2,
    "dropout": 0.1,
    "mixup": 0.3,
    "cutmix": 0.3,
    "randaugment_operations": 1,
    "time_warp": 0,
    "audio_crop": None,
}


def plain_features(dataset: ClipDataset, like: Features, audio: AudioConfig) -> Features:
    """Puts features without learning where those of encoders are."""
    mel, rows = LogMel(audio), {"video": [], "audio": []}
    for clip in dataset.clips(like.rows):
        sound, picture = np.full(2 * audio.num_mels, np.nan), np.full(64, np.nan)
        if clip.waveform is not None:
            waveform = torch.from_numpy(clip.waveform / 32767.0).float()
            bins = mel(torch.nn.functional.pad(waveform, (0, max(0, 4096 - len(waveform)))))
            sound = torch.cat([bins.mean(dim=1), bins.std(dim=1)]).numpy()
        if clip.frames is not None:
            frames = torch.from_numpy(clip.frames).float().permute(0, 3, 1, 2)
            cells = torch.nn.functional.adaptive_avg_pool2d(frames, 4)
            change = frames.diff(dim=0).abs().mean(dim=1, keepdim=True)
            moved = torch.nn.functional.adaptive_avg_pool2d(change, 4) if len(change) else None
            motion = torch.zeros(16) if moved is None else moved.mean(dim=0).flatten()
            picture = torch.cat([cells.mean(dim=0).flatten(), motion]).numpy()
        rows["audio"].append(sound)
        rows["video"].append(picture)
    matrices = {f"{m}/trained": np.stack(found).astype(np.float32) for m, found in rows.items()}
    return replace(like, matrices=matrices, layers={}, tokens={}, retrieval={})


def scored(
    source: EncoderSource,
    dataset: ClipDataset,
    values: dict[str, Any],
    official: Any,
    folder: Path,
    *,
    trained: bool,
) -> tuple[Features, FeatureScores, Outcomes]:
    """Scores one network by every measure."""
    settings = EvaluateSettings.model_validate(values)
    chosen = choose_clips(dataset, settings, official)
    networks = {"trained": load_network([source], trained=trained)}
    cache = folder.parent / "features"
    cache.mkdir(parents=True, exist_ok=True)
    features = features_of(networks, dataset, settings, ignore_progress, chosen=chosen, cache=cache)

    def tune(features, subject, sides):
        parts = [labelled(features, subject, clips) for clips in (sides.train, sides.test)]

        def scores() -> Fitted:
            every = fine_tune(source, subject, dataset.path, settings, *parts, trained=trained)
            seen = features.targets[sides.train].any(axis=0)
            return Fitted(np.where(seen, every[-1], UNSEEN), None, False, is_probability=True)

        return scores

    return features, *score_folds(features, settings, tune, KeptFits(folder))


def cell(figure: Figure | None) -> str:
    """A score and its interval."""
    return "" if figure is None else f"{100 * figure.value:.1f} {interval_text(figure)}".strip()


def main() -> None:
    """Prints the table."""
    given = options(DEFAULTS)
    folder = Path(given["folder"]).absolute()
    if not (given["clips"] and given["made"] and given["folder"]):
        raise SystemExit(__doc__)
    dataset = ClipDataset.open(given["clips"])
    official = None
    if given["lists"]:
        folds = tuple(int(fold) for fold in given["folds"].split(",") if fold)
        official = OfficialSettings(dataset=given["dataset"], lists=given["lists"], folds=folds)
    values = {
        "measures": FROZEN,
        "fusion": ("both", "late", "missing"),
        "linear_l2": (1e-2, 1.0, 10.0, 100.0),
        "svm_c": (1e-2, 1e-1, 1.0),
        "retrieval_sizes": (),
        "attentive_steps": int(given["attentive_steps"]),
        "finetune": RECIPE | {"epochs": int(given["epochs"])},
    }
    made = checkpoint_source(find_checkpoint(given["made"]), "made", "teacher")
    networks = {"untrained": (made, False), "made": (made, True)}
    for name in ("new", "begun"):
        if given[name]:
            found = checkpoint_source(find_checkpoint(given[name]), name, "teacher")
            networks[name] = (found, True)
    columns: dict[str, tuple[FeatureScores, Outcomes]] = {}
    features = None
    for name, (source, trained) in networks.items():
        started = time.monotonic()
        tunes = ("finetune",) if name in given["tuned"].split(",") else ()
        own = values | {"measures": (*FROZEN, *tunes)}
        features, *found = scored(source, dataset, own, official, folder / name, trained=trained)
        columns[name] = (found[0], found[1])
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    assert features is not None
    audio = made.model_config("audio").audio
    unlearned = plain_features(dataset, features, audio)
    small = values | {"measures": ("knn", "linear", "svm", "retrieval")}
    settings = EvaluateSettings.model_validate(small)
    columns["plain"] = score_folds(unlearned, settings, None, KeptFits(folder / "plain"))
    print_table(columns)


def print_table(columns: dict[str, tuple[FeatureScores, Outcomes]]) -> None:
    """Prints scores with intervals, and paired differences of columns."""
    pairs = [("made", "untrained"), ("begun", "new"), ("begun", "plain")]
    pairs = [pair for pair in pairs if set(pair) <= columns.keys()]
    heads = [TITLES[name] for name in columns]
    heads += [f"{TITLES[one]} minus {TITLES[other]}" for one, other in pairs]
    print(f"\n| measure | {' | '.join(heads)} |")
    print("|---" * (len(heads) + 1) + "|")
    result: dict[str, Any] = {}
    paths = {path: None for found, _ in columns.values() for path in found.figures()}
    for path in paths:
        if path.count("/") > 2 and "recall" not in path:
            continue
        figures = {name: found.figures().get(path) for name, (found, _) in columns.items()}
        shown = [cell(one) for one in figures.values()]
        shown += [cell(difference(columns, one, other, path)) for one, other in pairs]
        print(f"| {path.replace('/trained', '')} | {' | '.join(shown)} |")
        result[path] = {name: one.value for name, one in figures.items() if one}
    for name, (found, outcomes) in columns.items():
        print_tuned(name, outcomes)
        counts = {s: by["trained"].num_test for s, by in found.modalities.items()}
        chance = {s: round(by["trained"].majority, 3) for s, by in found.modalities.items()}
        print(f"{name}: test clips {counts}, most frequent class {chance}; {found.notes}")
    print(json.dumps({"benchmark": "measures", **environment("torch", "scikit-learn"), **result}))


def difference(
    columns: dict[str, tuple[FeatureScores, Outcomes]], one: str, other: str, path: str
) -> Figure | None:
    """One column minus another, paired by clip; None for retrieval and what one of them lacks."""
    ours, theirs = columns[one][1], columns[other][1]
    if path not in ours.values or path not in theirs.values:
        return None
    return paired(ours, path, theirs, path)


def print_tuned(name: str, outcomes: Outcomes) -> None:
    """Prints fine-tuning minus the linear probe of the same encoder, paired by clip."""
    for subject in ("video", "audio"):
        tuned, linear = (f"{subject}/trained/{measure}" for measure in ("finetune", "linear"))
        if {tuned, linear} <= outcomes.values.keys():
            change = paired(outcomes, tuned, outcomes, linear)
            print(f"{name}: {subject}, fine-tuning minus linear probe {cell(change)}")


if __name__ == "__main__":
    main()

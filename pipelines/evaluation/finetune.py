"""Fine-tunes an encoder on the training clips and scores the test clips.

Runs as a Ray task, on a GPU if there is one. Views of an epoch follow from (seed, epoch, clip), so
a run repeats to the bit on one machine. The last epoch is scored; `selection=test` scores others as
well and reports the best.

Paper: XKD, arXiv:2211.13929, fine-tuning protocol; batches here are as they fit one device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from pipelines.config.base import Datasets
from pipelines.config.evaluate import EvaluateSettings
from pipelines.dataset.joined import open_datasets
from pipelines.evaluation.embedder import Embedder, mean_by
from pipelines.evaluation.features import Features
from pipelines.evaluation.finetune_views import FineTuneViews, seeded
from pipelines.evaluation.networks import EncoderSource, EvaluatedEncoder
from pipelines.evaluation.probes.fits import FineTune, probabilities
from pipelines.evaluation.probes.solvers import UNSEEN, Fitted
from pipelines.evaluation.sides import Sides
from pipelines.evaluation.tasks import result_of, within_a_node
from xkd_core.classifiers.finetune import (
    Classifier,
    classification_loss,
    layer_groups,
    mix,
    smooth,
)
from xkd_core.encoders import Modality
from xkd_core.schedules import cosine

Array = NDArray[Any]


@dataclass(frozen=True)
class Labelled:
    """Rows of the dataset to learn from or to score, with the clip and the labels of each."""

    rows: Array
    owners: Array
    """Number of the clip, from 0, that each row belongs to."""
    targets: Array
    """Booleans of each clip, (clips, classes)."""
    is_multilabel: bool = False
    """Whether a clip of the dataset has several labels."""


def fine_tuner(
    sources: Sequence[EncoderSource], dataset: Datasets, settings: EvaluateSettings
) -> FineTune:
    """Returns what starts to fine-tune the encoders of a network, each in a Ray task of its own.

    Tasks of all folds and modalities run at the same time, as GPUs or CPUs and memory allow.
    """
    task = ray.remote(num_gpus=1 if settings.use_gpu else 0)(fine_tune).options(
        memory=within_a_node(settings.finetune.clips_gb * 1e9)
    )

    def start(features: Features, subject: str, sides: Sides) -> Callable[[], Fitted]:
        (source,) = (one for one in sources if subject in one.modalities)
        (modality,) = (one for one in source.modalities if one == subject)
        parts = [labelled(features, subject, clips) for clips in (sides.train, sides.test)]
        seen = features.targets[sides.train].any(axis=0)
        unseen_score = UNSEEN if not features.is_multilabel else 0
        running = task.remote(source, modality, dataset, settings, *parts)

        def wait() -> Fitted:
            every: list[Array] = result_of(running)
            scores = [np.where(seen, one, unseen_score) for one in every]
            candidates = tuple(scores) if settings.selection == "test" else ()
            return Fitted(scores[-1], None, False, is_probability=True, candidates=candidates)

        return wait

    return start


def labelled(features: Features, subject: str, clips: Array) -> Labelled:
    """Returns the segments of clips that have the modality."""
    there = features.segment_has[subject] & np.isin(features.segment_owners, clips)
    owners = np.searchsorted(clips, features.segment_owners[there])
    return Labelled(
        features.segment_rows[there], owners, features.targets[clips], features.is_multilabel
    )


def fine_tune(
    source: EncoderSource,
    modality: Modality,
    dataset: Datasets,
    settings: EvaluateSettings,
    train: Labelled,
    test: Labelled,
    *,
    trained: bool = True,
) -> list[Array]:
    """Trains, and returns probabilities of the test clips after each scored epoch.

    The last one is the last epoch's. Without `trained` it begins from random weights.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    evaluated = source.load(trained=trained, seed=settings.seed)[modality]
    with seeded(settings.seed):
        model = Classifier(
            evaluated.encoder.requires_grad_(True),
            evaluated.model.encoder.width,
            train.targets.shape[1],
            settings.finetune.dropout,
        ).to(device)
    views = FineTuneViews(modality, evaluated, open_datasets(dataset), settings)
    recipe = settings.finetune
    groups = layer_groups(
        model,
        learning_rate=recipe.learning_rate,
        layer_decay=recipe.layer_decay,
        weight_decay=recipe.weight_decay,
    )
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    found = []
    for epoch in range(recipe.epochs):
        _train_epoch(model, optimizer, views, train, epoch, settings)
        is_last = epoch == recipe.epochs - 1
        if is_last or (settings.selection == "test" and (epoch + 1) % recipe.score_every == 0):
            found.append(_score(model, views, test, evaluated, settings))
    return found


def _train_epoch(
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    views: FineTuneViews,
    train: Labelled,
    epoch: int,
    settings: EvaluateSettings,
) -> None:
    recipe, device = settings.finetune, next(model.parameters()).device
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    order = torch.randperm(len(train.rows), generator=generator).numpy()
    batches = np.array_split(order, max(1, round(len(order) / recipe.batch_size)))
    model.train()
    for number, batch in enumerate(batches):
        step = epoch * len(batches) + number
        rate = cosine(
            step + 1,
            start=1.0,
            end=recipe.final_rate,
            total_steps=recipe.epochs * len(batches),
            warmup_steps=round(recipe.warmup_epochs * len(batches)),
        )
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * group["scale"] * rate
        targets = torch.from_numpy(train.targets[train.owners[batch]]).float()
        if not train.is_multilabel:
            targets = smooth(targets, recipe.label_smoothing)
        clips = views.augmented(train.rows[batch], epoch, generator)
        clips, targets = mix(
            clips, targets, mixup=recipe.mixup, cutmix=views.cutmix, generator=generator
        )
        with seeded(settings.seed * 7_919 + step):  # dropout
            logits = model(clips.to(device))
        loss = classification_loss(logits, targets.to(device), is_multilabel=train.is_multilabel)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        optimizer.step()


@torch.no_grad()
def _score(
    model: Classifier,
    views: FineTuneViews,
    test: Labelled,
    evaluated: EvaluatedEncoder,
    settings: EvaluateSettings,
) -> Array:
    """Averages the probabilities of the windows and crops of each test clip."""
    model.eval()
    embedder = Embedder(views.modality, evaluated, settings.model_copy(update={"measures": ()}))
    sums, owners = [], []
    for begin in range(0, len(test.rows), settings.batch_size):
        part = slice(begin, begin + settings.batch_size)
        found = embedder.embed(views.clips(test.rows[part]))
        features = torch.from_numpy(found.pooled).to(next(model.parameters()).device)
        sums.append(model.head(features).double().cpu().numpy())
        owners.append(test.owners[part][found.owners])
    shares = probabilities(np.concatenate(sums), test.is_multilabel)
    return mean_by(shares, np.concatenate(owners), len(test.targets))

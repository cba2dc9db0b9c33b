"""The attentive probe of an evaluation: tokens in, scores of the test clips out."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.config.evaluate import EvaluateSettings
from pipelines.evaluation.features import Features
from pipelines.evaluation.probes.solvers import UNSEEN, Fitted
from pipelines.evaluation.sides import Sides
from xkd_core.classifiers.attentive import train_attentive_probe

Array = NDArray[Any]


@torch.no_grad()
def score_tokens(
    tokens: Array,
    sides: Sides,
    features: Features,
    settings: EvaluateSettings,
    device: torch.device | None,
) -> Fitted:
    """Trains a probe on the training clips' tokens and scores the test clips."""
    device = device or torch.device("cpu")
    targets = features.targets[sides.train]
    width = tokens.shape[2]
    heads = next(heads for heads in (12, 8, 6, 4, 3, 2, 1) if width % heads == 0)
    probe = train_attentive_probe(
        torch.from_numpy(tokens[sides.train]),
        torch.from_numpy(targets).float(),
        is_multilabel=features.is_multilabel,
        num_heads=heads,
        steps=settings.attentive_steps,
        batch_size=settings.batch_size,
        seed=settings.seed,
        device=device,
    )
    parts = [
        probe(torch.from_numpy(tokens[rows]).to(device).float()).cpu().double().numpy()
        for rows in np.array_split(sides.test, max(1, len(sides.test) // settings.batch_size))
    ]
    logits = np.concatenate(parts)
    return Fitted(np.where(targets.any(axis=0), logits, UNSEEN), None, False)

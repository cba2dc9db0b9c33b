"""What prevents an evaluation, found before anything is embedded."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.config.evaluate import EvaluateConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.joined import open_datasets
from pipelines.errors import UserError
from pipelines.evaluation.networks import EncoderSource
from pipelines.evaluation.official import check_official
from xkd_core.config import ModelConfig

Sources = Mapping[str, Sequence[EncoderSource]]
"""Where the encoders of `trained`, `untrained` and `reference` are."""


def check_evaluate(config: EvaluateConfig, sources: Sources) -> list[str]:
    """Returns everything that prevents an evaluation, found without starting anything."""
    try:
        dataset = open_datasets(config.dataset)
    except UserError as error:
        return [str(error)]
    models = encoders_of(sources)
    return (
        clip_mistakes(config, models, dataset)
        or check_official(config, dataset)
        or _split_mistakes(config, dataset)
        or _size_mistakes(config, models)
        or _token_mistakes(config, models, dataset)
    )


def networks_to_score(
    config: EvaluateConfig, trained: Sequence[EncoderSource], reference: Sequence[EncoderSource]
) -> dict[str, Sequence[EncoderSource]]:
    """Returns the networks of an evaluation by name."""
    found = {"trained": trained}
    if config.untrained_baseline:
        found["untrained"] = trained
    return found | ({"reference": reference} if reference else {})


def encoders_of(sources: Sources) -> dict[tuple[str, str], tuple[str, ModelConfig]]:
    """Returns what each encoder takes, by network and modality, and how the user named it."""
    return {
        (name, modality): (one.given, one.model_config(modality))
        for name, network in sources.items()
        if name != "untrained"
        for one in network
        for modality in one.modalities
    }


_Models = Mapping[tuple[str, str], tuple[str, ModelConfig]]


def _split_mistakes(config: EvaluateConfig, dataset: ClipDataset) -> list[str]:
    """Returns why there are no clips to extract features of; they need no labels for that."""
    wanted = (*config.train_splits, *config.test_splits)
    if np.isin(dataset.index.split, wanted).any() or _lists(config):
        return []
    there = ", ".join(sorted(set(dataset.index.split.tolist()))) or "none"
    return [
        f"dataset ({config.dataset}) has no clip in train_splits or test_splits "
        f"({', '.join(wanted)}); its splits: {there}"
    ]


def _lists(config: EvaluateConfig) -> str | None:
    return config.official.lists if config.official else None


def _size_mistakes(config: EvaluateConfig, models: _Models) -> list[str]:
    """Returns why an encoder cannot take crops of `video_size`."""
    for (_, modality), (given, model) in models.items():
        patch = model.video.patch_size
        if modality == "video" and config.video_size and config.video_size % patch:
            return [
                f"video_size ({config.video_size}) must be a multiple of {patch}, the patches of "
                f"{given}"
            ]
    return []


def _token_mistakes(config: EvaluateConfig, models: _Models, dataset: ClipDataset) -> list[str]:
    """Returns why the tokens of an attentive probe would not fit into memory."""
    if "attentive" not in config.measures:
        return []
    wanted = np.isin(dataset.index.split, (*config.train_splits, *config.test_splits))
    clips = dataset.num_clips if _lists(config) else int(wanted.sum())
    numbers = 0
    for (name, modality), (_, model) in models.items():
        side = config.video_size // model.video.patch_size if config.video_size else 0
        grid = getattr(model, modality).grid
        crops = config.num_crops if modality == "video" else 1
        grid = (grid[0], side, side) if side and modality == "video" else grid
        copies = 2 if config.untrained_baseline and name == "trained" else 1
        numbers += math.prod(grid) * crops * model.encoder.width * copies
    size = 2.0 * clips * numbers * config.num_windows / 1e9
    if size <= config.max_tokens_gb:
        return []
    return [
        f"measures (attentive) would keep {size:.1f} GB of tokens of {clips} clips, more than "
        f"max_tokens_gb ({config.max_tokens_gb:g}): set num_windows=1, raise it, or leave out "
        "attentive"
    ]


def clip_mistakes(config: EvaluateConfig, models: _Models, dataset: ClipDataset) -> list[str]:
    """Returns why scores would mean nothing: the clips differ in rate from an encoder's."""
    for (_, modality), (given, model) in models.items():
        name, wanted, there = (
            ("frame_rate", model.video.frame_rate, dataset.frame_rate)
            if modality == "video"
            else ("sample_rate", model.audio.sample_rate, dataset.sample_rate)
        )
        if wanted != there:
            return [
                f"dataset ({config.dataset}) does not fit {given}: model.{modality}.{name} "
                f"({wanted:g}) must equal the clips' {name} ({there:g})"
            ]
    return []

"""What is said of the weights that a training begins from: dry run, log, pages."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.config.pretrain import PretrainConfig
from pipelines.training.weight_source import WeightSource
from xkd_core.encoders import MODALITIES, Modality
from xkd_core.weights.initial import Fitted, other_inputs

_NETWORKS = {"both": "student and teacher", "students": "student", "teachers": "teacher"}


def beginnings(config: PretrainConfig, sources: Mapping[Modality, WeightSource]) -> list[str]:
    """Returns a line for each modality: which networks begin from what."""
    assert config.init is not None
    networks = _NETWORKS[config.init.networks]
    return [
        f"{modality} {networks} from {sources[modality].location}"
        if modality in sources
        else f"{modality} student and teacher with new weights"
        for modality in MODALITIES
    ]


def remarks(
    config: PretrainConfig,
    sources: Mapping[Modality, WeightSource],
    fits: Mapping[Modality, Fitted],
) -> list[str]:
    """Returns what a user may not expect of the weights, a sentence each."""
    return [
        *_of_modalities(config, sources, fits),
        *_of_sharing(config, set(sources)),
        *_of_frozen_teachers(config, fits),
    ]


def _of_modalities(
    config: PretrainConfig,
    sources: Mapping[Modality, WeightSource],
    fits: Mapping[Modality, Fitted],
) -> Iterator[str]:
    for modality, source in sources.items():
        yield from fits[modality].remarks
        if changed := other_inputs(source.model, config.model, modality):
            yield f"the {modality} encoder sees clips otherwise than before: {'; '.join(changed)}"


def _of_sharing(config: PretrainConfig, given: set[Modality]) -> Iterator[str]:
    """Says which encoder gives the blocks that both modalities share."""
    variant = config.model.variant
    assert config.init is not None
    teachers_alone = config.init.networks == "teachers"
    if variant == "modality_specific":
        return
    if variant == "modality_agnostic_student" and teachers_alone:
        return
    networks = "teachers" if teachers_alone else "students"
    if variant == "modality_agnostic_teacher_student" and config.init.networks == "both":
        networks = "students and teachers"
    owner = config.init.shared_blocks
    if len(given) == 1:
        (owner,) = given
        other = "audio" if owner == "video" else "video"
        yield (
            f"{networks} of both modalities share the blocks of the {owner} encoder; patches, "
            f"positions and norm of {other} are new"
        )
    elif owner is not None:
        yield f"{networks} of both modalities share the blocks of the {owner} encoder"


def _of_frozen_teachers(config: PretrainConfig, fits: Mapping[Modality, Fitted]) -> Iterator[str]:
    if config.objective.teacher != "frozen":
        return
    assert config.init is not None
    if config.init.networks == "students":
        yield "frozen teachers have new weights, because init.networks is students"
        return
    for modality in MODALITIES:
        tensors = fits[modality].tensors if modality in fits else {}
        if not tensors:
            yield f"init gives no weights to the frozen {modality} teacher"
        elif not any(name.startswith("teacher_head.") for name in tensors):
            yield f"the head of the frozen {modality} teacher is new, and stays as it is"


def origin_lines(origins: Mapping[str, Mapping[str, Any]] | None) -> dict[str, str]:
    """Returns the origin of each modality in one line, for pages."""
    return {
        modality: f"{origin['source']}, content {origin['content'][:12]}"
        for modality, origin in (origins or {}).items()
    }

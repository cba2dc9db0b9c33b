"""Fine-tuning of an encoder: layer-wise learning rates, mixing of clips, erased boxes, the network.

A box of cutmix lies in the last two axes, height and width of a video, in all frames alike, and the
share of a label is that of the pixels that stayed. All random numbers come from a generator.

Paper: XKD, arXiv:2211.13929, fine-tuning protocol; BEiT, arXiv:2106.08254 (layer-wise decay);
mixup, arXiv:1710.09412; CutMix, arXiv:1905.04899; random erasing, arXiv:1708.04896.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from xkd_core.encoders import Encoder
from xkd_core.shapes import Float, Tensor

_ERASED_AREA = (0.02, 1 / 3)
_ERASED_RATIO = (0.3, 1 / 0.3)
_TRIES = 10


class Classifier(nn.Module):
    """An encoder, dropout, and a linear layer on the mean of its patch tokens.

    Args:
        encoder: Its parameters are trained.
        width: Width of its tokens.
        num_classes: Outputs.
        dropout: Share of the features that training drops.
    """

    def __init__(self, encoder: Encoder, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)
        nn.init.orthogonal_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, clip: Float[Tensor, "B C *size"]) -> Float[Tensor, "B num_classes"]:
        """Computes logits."""
        return self.head(self.dropout(self.encoder.embed(clip)))


def layer_groups(
    model: Classifier, *, learning_rate: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Returns parameter groups for AdamW, whose rates fall from the head to the patches.

    Patches, CLS and positions are layer 0, block i is layer i + 1, the final norm and the head are
    the last one, L + 1. The rate of layer n is `learning_rate * layer_decay ** (L + 1 - n)`, kept
    as `scale` in its groups. Biases, norms, CLS and positions are not decayed.
    """
    last = len(model.encoder.blocks) + 1
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        is_token = name.rpartition(".")[2] in ("cls_token", "position_table")
        decays = parameter.ndim > 1 and not is_token
        groups.setdefault((_layer(name, last), decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_decay ** (last - layer),
            "scale": layer_decay ** (last - layer),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (layer, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _layer(name: str, last: int) -> int:
    parts = name.split(".")
    if parts[:2] == ["encoder", "blocks"]:
        return int(parts[2]) + 1
    return last if parts[0] == "head" or parts[:2] == ["encoder", "norm"] else 0


def smooth(
    targets: Float[Tensor, "B num_classes"], smoothing: float
) -> Float[Tensor, "B num_classes"]:
    """Takes a share of each label and spreads it over all classes."""
    return targets * (1 - smoothing) + smoothing / targets.shape[1]


def mix(
    clips: Float[Tensor, "B C *size"],
    targets: Float[Tensor, "B num_classes"],
    *,
    mixup: float,
    cutmix: float,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "B C *size"], Float[Tensor, "B num_classes"]]:
    """Mixes each clip with that of the other end of the batch, by mixup or by cutmix.

    Args:
        clips: Videos (B, 3, T, H, W) or spectrograms (B, 1, M, T).
        targets: Shares of the classes.
        mixup: Parameter of the Beta distribution of the share; 0 for none.
        cutmix: The same of the box. If both are above 0, each is taken for half of the batches.
        generator: On the CPU.
    """
    if mixup <= 0 and cutmix <= 0:
        return clips, targets
    is_cut = cutmix > 0 and (mixup <= 0 or float(torch.rand(1, generator=generator)) < 0.5)
    share = _beta(cutmix if is_cut else mixup, generator)
    if is_cut:
        clips, share = _cut(clips, share, generator)
    else:
        clips = share * clips + (1 - share) * clips.flip(0)
    return clips, share * targets + (1 - share) * targets.flip(0)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """Draws from Beta(alpha, alpha): the quotient of two gamma variables."""
    first, second = (
        float(torch._standard_gamma(torch.tensor([alpha]), generator=generator)) for _ in range(2)
    )
    return first / (first + second) if first + second > 0 else 0.5


def _cut(
    clips: Float[Tensor, "B C *size"], share: float, generator: torch.Generator
) -> tuple[Float[Tensor, "B C *size"], float]:
    """Puts a box of the other clip into each; returns the share of pixels that stayed."""
    height, width = clips.shape[-2:]
    rows, columns = (round(side * math.sqrt(1 - share)) for side in (height, width))
    top, left = (
        int(torch.randint(0, side - length + 1, (1,), generator=generator))
        for side, length in ((height, rows), (width, columns))
    )
    mixed = clips.clone()
    box = (..., slice(top, top + rows), slice(left, left + columns))
    mixed[box] = clips.flip(0)[box]
    return mixed, 1 - rows * columns / (height * width)


def erase(
    clips: Float[Tensor, "B C *size"], probability: float, generator: torch.Generator
) -> Float[Tensor, "B C *size"]:
    """Fills a random box of some clips with noise, the same box in all frames of a clip."""
    erased = clips.clone()
    for clip in range(len(clips)):
        if float(torch.rand(1, generator=generator)) < probability:
            _erase_(erased[clip], generator)
    return erased


def _erase_(clip: Float[Tensor, " C *size"], generator: torch.Generator) -> None:
    height, width = clip.shape[-2:]
    for _ in range(_TRIES):
        area, ratio = torch.rand(2, generator=generator).tolist()
        area = height * width * (_ERASED_AREA[0] + area * (_ERASED_AREA[1] - _ERASED_AREA[0]))
        low, high = (math.log(bound) for bound in _ERASED_RATIO)
        ratio = math.exp(low + ratio * (high - low))
        rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < rows < height and 0 < columns < width:
            top = int(torch.randint(0, height - rows + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - columns + 1, (1,), generator=generator))
            box = clip[..., top : top + rows, left : left + columns]
            noise = torch.randn(box.shape, generator=generator)
            box.copy_(noise.to(clip))
            return


def classification_loss(
    logits: Float[Tensor, "B num_classes"],
    targets: Float[Tensor, "B num_classes"],
    *,
    is_multilabel: bool,
) -> Float[Tensor, ""]:
    """Cross-entropy against shares of the classes, or of each label by itself."""
    if is_multilabel:
        return F.binary_cross_entropy_with_logits(logits, targets)
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()

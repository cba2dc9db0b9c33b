"""The optimizer: AdamW with two parameter groups, and gradient clipping tensor by tensor.

With layer decay there are two groups for each depth, whose rates are those of timm and BEiT:

    depth 3, decay 0.5   patches, CLS, positions   block 0   block 1   block 2   others
    rate times                    1/16               1/8       1/4       1/2            1

Weight decay applies to tensors of two or more dimensions, as published including CLS tokens, mask
tokens and position tables, but not to biases and LayerNorms. Gradients of the students' encoders
and heads are clipped, those of the decoders are not.

Paper: XKD, arXiv:2211.13929.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from xkd_core.config import OptimizerConfig
from xkd_core.shapes import Float, Scalar, Tensor
from xkd_core.sharding import gradient_norms, local_part
from xkd_core.xkd import XKD

_CLIP_EPS = 1e-6
_TOKENS_AND_POSITIONS = {"cls_token", "mask_token", "position_table"}
_RATE = "rate_factor"
"""Key of a parameter group: what the scheduled learning rate is multiplied by; 1 without it."""
_IN_STUDENT = re.compile(
    r"(?:video|audio)_student\.(?:blocks\.(?P<block>\d+)\.|patch_projection|cls_token|position_table)"
)


def freeze_first_blocks(model: XKD, config: OptimizerConfig) -> None:
    """Stops the first blocks of the students, and what comes before them, from learning."""
    for student, num_blocks in (
        (model.video_student, config.frozen_video_blocks),
        (model.audio_student, config.frozen_audio_blocks),
    ):
        if num_blocks:
            student.patch_projection.requires_grad_(False)
            student.cls_token.requires_grad_(False)
            student.position_table.requires_grad_(False)
            for block in student.blocks[:num_blocks]:
                block.requires_grad_(False)


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Builds AdamW over the trainable parameters; schedules set the learning rate later."""
    decaying: dict[float, list[nn.Parameter]] = {}
    plain: dict[float, list[nn.Parameter]] = {}
    for name, parameter, rate in _learning(model, config.layer_decay):
        is_spared = name.rpartition(".")[2] in _TOKENS_AND_POSITIONS
        decays = parameter.ndim >= 2 and (config.decay_tokens_and_positions or not is_spared)
        (decaying if decays else plain).setdefault(rate, []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": weight_decay, _RATE: rate}
        for by_rate, weight_decay in ((decaying, config.weight_decay), (plain, 0.0))
        for rate, parameters in sorted(by_rate.items())
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True
    )


def _learning(model: nn.Module, layer_decay: float) -> Iterator[tuple[str, nn.Parameter, float]]:
    """Yields the trainable parameters with their names and the factors of their rates."""
    learning = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    if layer_decay == 1.0:
        yield from ((name, parameter, 1.0) for name, parameter in learning)
        return
    blocks = [m["block"] for name, _ in model.named_parameters() if (m := _IN_STUDENT.match(name))]
    depth = 1 + max(int(block) for block in blocks if block is not None)
    for name, parameter in learning:
        match = _IN_STUDENT.match(name)
        if match is None:
            yield name, parameter, 1.0
        else:
            block = -1 if match["block"] is None else int(match["block"])
            yield name, parameter, layer_decay ** (depth - block)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: Scalar) -> None:
    """Sets the learning rate of every group, times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get(_RATE, 1.0)


def clipped_parameters(model: XKD) -> list[nn.Parameter]:
    """Returns the parameters of the students' encoders and heads, each once."""
    parameters = {
        id(parameter): parameter
        for module in (
            model.video_student,
            model.audio_student,
            model.video_student_head,
            model.audio_student_head,
        )
        for parameter in module.parameters()
    }
    return list(parameters.values())


def clip_each_gradient(
    parameters: Sequence[nn.Parameter],
    max_norm: float,
    norms: Mapping[nn.Parameter, Float[Tensor, ""]] | None = None,
) -> None:
    """Scales each gradient whose norm is above `max_norm` down to it.

    Args:
        parameters: Those without a gradient are skipped.
        max_norm: Largest norm.
        norms: From `norms_of_gradients`, if they are known.
    """
    learning = [parameter for parameter in parameters if parameter.grad is not None]
    if not learning:
        return
    norms = norms_of_gradients(learning) if norms is None else norms
    known = torch.stack([norms[parameter] for parameter in learning])
    scales = (max_norm / (known + _CLIP_EPS)).clamp_max(1.0)
    gradients = [local_part(p.grad) for p in learning if p.grad is not None]
    torch._foreach_mul_(gradients, list(scales.unbind()))


def norms_of_gradients(
    parameters: Iterable[nn.Parameter],
) -> dict[nn.Parameter, Float[Tensor, ""]]:
    """Computes the norm of each gradient that is there, over all its shards."""
    learning = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
    if not gradients:
        return {}
    return dict(zip(learning, gradient_norms(gradients).unbind(), strict=True))


def total_norm(norms: Mapping[nn.Parameter, Float[Tensor, ""]]) -> Float[Tensor, ""]:
    """Returns the norm of all gradients taken as one vector, from `norms_of_gradients`."""
    return torch.stack(list(norms.values())).norm()

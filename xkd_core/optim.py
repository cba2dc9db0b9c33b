"""The optimizer: AdamW with two parameter groups, and gradient clipping tensor by tensor.

Weight decay applies to tensors of two or more dimensions, as published including CLS tokens, mask
tokens and position tables, but not to biases and LayerNorms. Gradients of the students' encoders
and heads are clipped, those of the decoders are not.

Paper: XKD, arXiv:2211.13929.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from xkd_core.config import OptimizerConfig
from xkd_core.shapes import Float, Tensor
from xkd_core.sharding import gradient_norms, local_part
from xkd_core.xkd import XKD

_CLIP_EPS = 1e-6
_TOKENS_AND_POSITIONS = {"cls_token", "mask_token", "position_table"}


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Builds AdamW over the trainable parameters; schedules set the learning rate later."""
    decaying: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_spared = name.rpartition(".")[2] in _TOKENS_AND_POSITIONS
            decays = parameter.ndim >= 2 and (config.decay_tokens_and_positions or not is_spared)
            (decaying if decays else plain).append(parameter)
    groups = [
        {"params": decaying, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


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

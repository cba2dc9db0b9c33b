"""The optimizer: AdamW with two parameter groups, and gradient clipping tensor by tensor.

Weight decay applies to tensors of two or more dimensions, as published including CLS tokens, mask
tokens and position tables, but not to biases and LayerNorms. Gradients of the students' encoders
and heads are clipped, those of the decoders are not.

Paper: XKD, arXiv:2211.13929.
"""

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


def clip_each_gradient(parameters: list[nn.Parameter], max_norm: float) -> None:
    """Scales each gradient whose norm is above `max_norm` down to it."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    scales = (max_norm / (gradient_norms(gradients) + _CLIP_EPS)).clamp_max(1.0)
    torch._foreach_mul_([local_part(gradient) for gradient in gradients], list(scales.unbind()))


def total_gradient_norm(model: nn.Module) -> Float[Tensor, ""]:
    """Returns the norm of all gradients of a model, taken as one vector."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return gradient_norms(gradients).norm()

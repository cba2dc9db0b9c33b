"""Refinement: a teacher's tokens are weighted by its attention, seen from the other modality.

With A the CLS attention of a teacher's last block (heads x patches) and the outer product
P[i, j] = A_video[i] A_audio[j] per head, the cross-modal map of the video is

    C_video = mean_j P / mean_i A_video = A_video * (mean A_audio / mean A_video)

so the outer product is never made. A clip's tokens are weighted by the mean of C over heads and
rescaled so that their mean keeps its norm.

Paper: XKD, arXiv:2211.13929.
"""

from typing import Literal

import torch

from xkd_core.shapes import Float, Tensor

Refinement = Literal["mean", "softmax", "none"]
EPS = 1e-12


def cross_modal_attention(
    attention: Float[Tensor, "B A N"],
    other: Float[Tensor, "B A N_other"],
    mode: Literal["mean", "softmax"],
) -> Float[Tensor, "B A N"]:
    """Weight of each patch of one modality, given the other's attention.

    `softmax` takes the softmax over patches of mean_j P instead of dividing it.
    """
    other_mean = other.float().mean(dim=-1, keepdim=True)
    marginal = attention.float() * other_mean  # mean_j P
    if mode == "softmax":
        return marginal.softmax(dim=-1)
    return marginal / (attention.float().mean(dim=-1, keepdim=True) + EPS)


def refine(
    tokens: Float[Tensor, "B N D"], attention: Float[Tensor, "B A N"]
) -> Float[Tensor, "B N D"]:
    """Weights the tokens by the head average of `attention`; their mean keeps its norm."""
    tokens = tokens.float()
    weighted = tokens * attention.float().mean(dim=1).unsqueeze(-1)
    norm = tokens.mean(dim=1).norm(dim=-1)
    weighted_norm = weighted.mean(dim=1).norm(dim=-1)
    return weighted * (norm / (weighted_norm + EPS))[:, None, None]


def refine_and_pool(
    tokens: Float[Tensor, "B N D"],
    attention: Float[Tensor, "B A N"],
    other_attention: Float[Tensor, "B A N_other"],
    mode: Refinement,
) -> Float[Tensor, "B D"]:
    """Features of a teacher: the mean of its refined tokens, or with `none` of its tokens."""
    if mode == "none":
        return tokens.float().mean(dim=1)
    with torch.autocast(tokens.device.type, enabled=False):
        weights = cross_modal_attention(attention, other_attention, mode)
        return refine(tokens, weights).mean(dim=1)

"""Refinement: weighs a teacher's tokens by attention across modalities before pooling.

Let A be the CLS attention of a teacher's last block (heads x patches). With the outer product
P[i, j] = A_video[i] A_audio[j] of each head, the cross-modal map of the video is

    C_video[i] = mean_j P[i, j] / mean_i A_video = A_video[i] * (mean A_audio / mean A_video)

so the outer product is never computed. Tokens are weighted by the mean of C over heads and rescaled
so that their mean keeps its norm:

    A_video   .1 .1 .6 .2      one head, four patches, mean .25
    A_audio   .3 .1            two patches, mean .2
    C_video   .08 .08 .48 .16  = A_video * .2 / .25

The rescaling removes a common factor, so a video's weights are its own attention up to one factor a
head: the sound cannot move weight from one patch to another. With `cross` it can. C then has one
more factor, the agreement of each patch with the other modality. Tokens of two encoders are not
comparable, but outputs of their heads are, because alignment and distillation share that space.
Therefore the head is applied to every token, like the classifier of a class activation map.

Paper: XKD, arXiv:2211.13929; class activation maps, arXiv:1512.04150.
"""

from typing import Literal

import torch
import torch.nn.functional as F

from xkd_core.shapes import Float, Tensor

Refinement = Literal["mean", "softmax", "cross", "none"]
_EPS = 1e-12
_AGREEMENT_TEMPERATURE = 0.1
"""Difference of cosines that changes the weight by a factor of e."""


def cross_modal_attention(
    attention: Float[Tensor, "B A N"],
    other: Float[Tensor, "B A N_other"],
    mode: Literal["mean", "softmax"],
) -> Float[Tensor, "B A N"]:
    """Computes the weight of each patch of one modality, given the other's attention.

    `mean` is C above; `softmax` is the softmax of mean_j P over patches.
    """
    other_mean = other.float().mean(dim=-1, keepdim=True)
    marginal = attention.float() * other_mean  # mean_j P
    if mode == "softmax":
        return marginal.softmax(dim=-1)
    return marginal / (attention.float().mean(dim=-1, keepdim=True) + _EPS)


def agreement(
    token_logits: Float[Tensor, "B N K"], other_logits: Float[Tensor, "B K"]
) -> Float[Tensor, "B N"]:
    """Computes the agreement of each token with the other modality: exp(cosine / temperature).

    If all tokens have the same output, as before training, the agreement is the same for all and
    `cross` equals `mean`.

    Args:
        token_logits: Output of the modality's head for each token.
        other_logits: Output of the other modality's head for the mean of its tokens.
    """
    with torch.autocast(token_logits.device.type, enabled=False):
        tokens = F.normalize(token_logits.float(), dim=-1)
        other = F.normalize(other_logits.float(), dim=-1)
        cosine = torch.einsum("bnk,bk->bn", tokens, other)
        return (cosine / _AGREEMENT_TEMPERATURE).exp()


def refine(
    tokens: Float[Tensor, "B N D"], attention: Float[Tensor, "B A N"]
) -> Float[Tensor, "B N D"]:
    """Weighs tokens by the mean of `attention` over heads and keeps the norm of their mean."""
    tokens = tokens.float()
    weighted = tokens * attention.float().mean(dim=1).unsqueeze(-1)
    norm = tokens.mean(dim=1).norm(dim=-1)
    weighted_norm = weighted.mean(dim=1).norm(dim=-1)
    return weighted * (norm / (weighted_norm + _EPS))[:, None, None]


def refine_and_pool(
    tokens: Float[Tensor, "B N D"],
    attention: Float[Tensor, "B A N"],
    other_attention: Float[Tensor, "B A N_other"],
    mode: Refinement,
    token_agreement: Float[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B D"]:
    """Computes a teacher's features: the mean of its refined tokens; with `none` of its tokens.

    Only `cross` needs `token_agreement`.
    """
    if mode == "none":
        return tokens.float().mean(dim=1)
    with torch.autocast(tokens.device.type, enabled=False):
        weights = cross_modal_attention(
            attention, other_attention, "softmax" if mode == "softmax" else "mean"
        )
        if mode == "cross":
            assert token_agreement is not None
            weights = weights * token_agreement.float().unsqueeze(1)
        return refine(tokens, weights).mean(dim=1)

"""Refinement: a teacher's tokens are weighted by its attention, seen from the other modality.

With A the CLS attention of a teacher's last block (heads x patches) and the outer product
P[i, j] = A_video[i] A_audio[j] per head, the cross-modal map of the video is

    C_video = mean_j P / mean_i A_video = A_video * (mean A_audio / mean A_video)

so the outer product is never made. A clip's tokens are weighted by the mean of C over heads and
rescaled so that their mean keeps its norm.

Since scale does not matter, a video's weights are its own attention but for one number per head:
what the sound is can move no weight from one patch to another. With `cross` it can. There P has a
third factor, how well a patch agrees with the other modality, and as that is the same for all of
the other's patches it comes out as a factor of C. Tokens of two encoders cannot be compared, but
outputs of the heads can: alignment and distillation make one space of them. So each head, made for
the mean of tokens, is put on every token, as a class activation map puts a classifier there.

Paper: XKD, arXiv:2211.13929; class activation maps, arXiv:1512.04150.
"""

from typing import Literal

import torch
import torch.nn.functional as F

from xkd_core.shapes import Float, Tensor

Refinement = Literal["mean", "softmax", "cross", "none"]
_EPS = 1e-12
_AGREEMENT_TEMPERATURE = 0.1
"""A cosine that is higher by this much weighs e times as much."""


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
    return marginal / (attention.float().mean(dim=-1, keepdim=True) + _EPS)


def agreement(
    token_logits: Float[Tensor, "B N K"], other_logits: Float[Tensor, "B K"]
) -> Float[Tensor, "B N"]:
    """How well each token agrees with the other modality: exp(cosine / temperature) of outputs.

    Where outputs of all tokens are alike, as before training, this is the same for all and `cross`
    weighs as `mean` does.

    Args:
        token_logits: What the modality's head makes of each token.
        other_logits: What the other's head makes of the mean of its tokens.
    """
    with torch.autocast(token_logits.device.type, enabled=False):
        tokens = F.normalize(token_logits.float(), dim=-1)
        other = F.normalize(other_logits.float(), dim=-1)
        cosine = torch.einsum("bnk,bk->bn", tokens, other)
        return (cosine / _AGREEMENT_TEMPERATURE).exp()


def refine(
    tokens: Float[Tensor, "B N D"], attention: Float[Tensor, "B A N"]
) -> Float[Tensor, "B N D"]:
    """Weights the tokens by the head average of `attention`; their mean keeps its norm."""
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
    """Features of a teacher: the mean of its refined tokens, or with `none` of its tokens.

    `token_agreement` is what `cross` needs, and `cross` alone.
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

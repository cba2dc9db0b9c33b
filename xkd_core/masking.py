"""Random token masking for the masked-autoencoding branch.

A student encodes only the tokens that stay visible; the decoder is asked for the rest. The random
numbers come from the caller, one per token, so a clip's mask does not depend on its batch.

Paper: XKD, arXiv:2211.13929; MAE, arXiv:2111.06377; tubes, VideoMAE, arXiv:2203.12602.
"""

from typing import NamedTuple

import torch

from xkd_core.config import VideoConfig
from xkd_core.shapes import Bool, Float, Int, Tensor


class TokenMask(NamedTuple):
    """Which tokens of a clip a student sees."""

    keep: Int[Tensor, "B N_keep"]
    """Positions of the visible tokens, in the order in which they are encoded."""
    hidden: Bool[Tensor, "B N"]
    """True where the student does not see the token."""
    restore: Int[Tensor, "B N"]
    """For each position, its place in the sequence [visible tokens, hidden tokens]."""


def random_mask(noise: Float[Tensor, "B N"], num_visible: int) -> TokenMask:
    """Keeps the tokens with the lowest noise visible; each clip for itself.

    Raises:
        ValueError: If no token would be visible, or none hidden.
    """
    num_tokens = noise.shape[1]
    if not 1 <= num_visible < num_tokens:
        raise ValueError(f"num_visible ({num_visible}) must be 1 to {num_tokens - 1}")
    order = noise.argsort(dim=1, stable=True)
    restore = order.argsort(dim=1, stable=True)
    return TokenMask(order[:, :num_visible], restore >= num_visible, restore)


def video_mask_noise(noise: Float[Tensor, "B N"], video: VideoConfig) -> Float[Tensor, "B N"]:
    """Arranges noise as the masking of videos asks: for tubes that of the first tokens in time.

    Tokens of one place then have equal noise, and `random_mask`, whose order is stable, keeps or
    hides them together.
    """
    if video.masking == "random":
        return noise
    num_times = video.grid[0]
    return noise[:, : video.num_tokens // num_times].repeat(1, num_times)


def take_tokens(
    tokens: Float[Tensor, "B N D"], positions: Int[Tensor, "B N_keep"]
) -> Float[Tensor, "B N_keep D"]:
    """Picks the tokens at `positions`, clip by clip."""
    return tokens.gather(1, positions.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def restore_tokens(
    visible: Float[Tensor, "B N_keep D"],
    mask_token: Float[Tensor, "1 1 D"],
    restore: Int[Tensor, "B N"],
) -> Float[Tensor, "B N D"]:
    """Puts the visible tokens back in their places and the mask token everywhere else."""
    num_hidden = restore.shape[1] - visible.shape[1]
    hidden = mask_token.to(visible.dtype).expand(visible.shape[0], num_hidden, -1)
    return take_tokens(torch.cat([visible, hidden], dim=1), restore)

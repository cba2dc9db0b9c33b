"""Random token masking for the masked autoencoder.

A student encodes only the visible tokens, and the decoder predicts the rest. The caller provides
the random numbers, one a token, so a clip's mask does not depend on its batch.

    noise     .7  .1  .9  .4       num_visible = 2
    order      1   3   0   2       positions by noise
    keep       1   3               visible tokens, as encoded
    masked     0   2               hidden tokens
    restore    2   0   3   1       where token i is in [visible, hidden]
    hidden     T   F   T   F

Paper: XKD, arXiv:2211.13929; MAE, arXiv:2111.06377; tubes, VideoMAE, arXiv:2203.12602.
"""

from typing import NamedTuple

import torch

from xkd_core.config import VideoConfig
from xkd_core.shapes import Bool, Float, Int, Tensor


class TokenMask(NamedTuple):
    """The tokens that a student sees of each clip."""

    keep: Int[Tensor, "B N_keep"]
    """Positions of the visible tokens, in the order in which they are encoded."""
    masked: Int[Tensor, "B N_hidden"]
    """Positions of the hidden tokens."""
    hidden: Bool[Tensor, "B N"]
    """True where the student does not see the token."""
    restore: Int[Tensor, "B N"]
    """Index of each token in the sequence [visible tokens, hidden tokens]."""


def random_mask(noise: Float[Tensor, "B N"], num_visible: int) -> TokenMask:
    """Keeps the tokens with the lowest noise visible, clip by clip.

    Raises:
        ValueError: If all tokens or none would be visible.
    """
    num_tokens = noise.shape[1]
    if not 1 <= num_visible < num_tokens:
        raise ValueError(f"num_visible ({num_visible}) must be 1 to {num_tokens - 1}")
    order = noise.argsort(dim=1, stable=True)
    restore = order.argsort(dim=1, stable=True)
    keep, masked = order[:, :num_visible], order[:, num_visible:]
    return TokenMask(keep, masked, restore >= num_visible, restore)


def video_mask_noise(noise: Float[Tensor, "B N"], video: VideoConfig) -> Float[Tensor, "B N"]:
    """Returns the noise for `video.masking`; tubes repeat the noise of the first time step.

    Tokens of one tube then have equal noise. `random_mask` sorts stably, so it keeps or hides them
    together.
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
    """Puts the visible tokens back to their positions and the mask token everywhere else."""
    num_hidden = restore.shape[1] - visible.shape[1]
    hidden = mask_token.to(visible.dtype).expand(visible.shape[0], num_hidden, -1)
    return take_tokens(torch.cat([visible, hidden], dim=1), restore)

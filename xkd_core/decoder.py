"""The decoder of the masked autoencoder: predicts all patches from the visible tokens.

Used in pretraining only. As published it has no final norm, and no projection between equal widths.

Paper: XKD, arXiv:2211.13929; MAE, arXiv:2111.06377.
"""

import torch
from torch import nn

from xkd_core.masking import restore_tokens
from xkd_core.regions import region
from xkd_core.shapes import Float, Int, Tensor
from xkd_core.transformer import init_transformer, transformer_blocks


class Decoder(nn.Module):
    """Predicts the normalized patches of a clip from the tokens that stayed visible.

    Args:
        encoder_width: Width of the encoder's tokens.
        width: Width of the decoder's tokens.
        depth: Number of blocks.
        num_heads: Attention heads of a block.
        num_tokens: Patches of a whole clip.
        patch_dim: Numbers in one patch.
    """

    def __init__(
        self,
        *,
        encoder_width: int,
        width: int,
        depth: int,
        num_heads: int,
        num_tokens: int,
        patch_dim: int,
    ) -> None:
        super().__init__()
        self.input_projection = _projection(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_table = nn.Parameter(torch.empty(1, 1 + num_tokens, width))
        self.blocks = transformer_blocks(width, depth, num_heads)
        self.output_projection = _projection(width, patch_dim)
        self.init_weights()

    def init_weights(self) -> None:
        """Sets every parameter."""
        init_transformer(self)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.position_table, std=0.02)

    def forward(
        self,
        tokens: Float[Tensor, "B N_visible D"],
        restore: Int[Tensor, "B N"],
        wanted: Int[Tensor, "B N_wanted"] | None = None,
    ) -> Float[Tensor, "B N_out P"]:
        """Predicts the patches of all positions from CLS and the visible tokens of the encoder.

        With `wanted` it predicts only those. The last block then computes only their tokens, which
        changes nothing: no later block reads the others.
        """
        tokens = self._embed(tokens, restore)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens)
        if wanted is None:
            return self.output_projection(last(tokens)[:, 1:])
        return self.output_projection(last(tokens, only=1 + wanted))  # CLS is before the patches

    @region
    def _embed(
        self, tokens: Float[Tensor, "B N_visible D"], restore: Int[Tensor, "B N"]
    ) -> Float[Tensor, "B N_all D_decoder"]:
        """Computes the input of the first block: CLS and all positions."""
        tokens = self.input_projection(tokens)
        patch_tokens = restore_tokens(tokens[:, 1:], self.mask_token, restore)
        return torch.cat([tokens[:, :1], patch_tokens], dim=1) + self.position_table


def _projection(width_in: int, width_out: int) -> nn.Module:
    return nn.Identity() if width_in == width_out else nn.Linear(width_in, width_out)

"""The encoder of one modality: patches to tokens, a CLS token, positions, transformer blocks.

Only visible patches are projected, which gives the same tokens as projecting all patches and
dropping some. Blocks are an argument, so that two encoders can share them.

Paper: XKD, arXiv:2211.13929; ViT, arXiv:2010.11929.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import nn

from xkd_core.config import ModelConfig
from xkd_core.masking import take_tokens
from xkd_core.patches import patch_grid, to_patches
from xkd_core.positions import PositionInterpolation, resize_positions
from xkd_core.regions import region
from xkd_core.shapes import Float, Int, Tensor
from xkd_core.transformer import (
    block_with_attention,
    init_transformer,
    pack,
    transformer_blocks,
    unpack,
)

Modality = Literal["video", "audio"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
_VIDEO_CHANNELS = 3
_AUDIO_CHANNELS = 1


class Encoder(nn.Module):
    """A ViT over the patches of a video or of a spectrogram.

    Args:
        patch_size: Sides of a patch: (frames, rows, columns), or (mel bins, frames).
        num_channels: Channels of a clip.
        grid: Patches along each axis of the clips that the position table is for.
        width: Width of a token.
        blocks: The transformer blocks; another encoder may have the same ones.
        position_interpolation: How the position table is resized for clips of other sizes.
    """

    def __init__(
        self,
        *,
        patch_size: tuple[int, ...],
        num_channels: int,
        grid: tuple[int, ...],
        width: int,
        blocks: nn.ModuleList,
        position_interpolation: PositionInterpolation,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.grid = grid
        self.position_interpolation: PositionInterpolation = position_interpolation
        self.patch_projection = nn.Linear(math.prod(patch_size) * num_channels, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_table = nn.Parameter(torch.empty(1, 1 + math.prod(grid), width))
        self.blocks = blocks
        self.norm = nn.LayerNorm(width)
        self.init_weights()

    def init_weights(self) -> None:
        """Initializes all parameters, including those of the blocks."""
        init_transformer(self)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.position_table, std=0.02)

    def forward(
        self, clip: Float[Tensor, "B C *size"], keep: Int[Tensor, "B N_keep"] | None = None
    ) -> Float[Tensor, "B N_out D"]:
        """Computes tokens after the final norm, CLS first; with `keep`, only of those patches."""
        tokens = self.embed_patches(clip, keep)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def embed_patches(
        self, clip: Float[Tensor, "B C *size"], keep: Int[Tensor, "B N_keep"] | None
    ) -> Float[Tensor, "B N_out D"]:
        """Computes the input of the first block: CLS and the patches, with their positions."""
        positions = self._patch_positions(patch_grid(tuple(clip.shape[2:]), self.patch_size))
        return self._embed(clip, positions, keep)

    @region
    def _embed(
        self,
        clip: Float[Tensor, "B C *size"],
        positions: Float[Tensor, "1 N D"],
        keep: Int[Tensor, "B N_keep"] | None,
    ) -> Float[Tensor, "B N_out D"]:
        patches = to_patches(clip, self.patch_size)
        if keep is not None:
            patches = take_tokens(patches, keep)
            positions = take_tokens(positions.expand(clip.shape[0], -1, -1), keep)
        cls_token = self.cls_token + self.position_table[:, :1]
        tokens = self.patch_projection(patches) + positions
        return torch.cat([cls_token.expand(clip.shape[0], -1, -1), tokens], dim=1)

    def last_blocks(self, clip: Float[Tensor, "B C *size"], count: int) -> list[Tensor]:
        """Computes the tokens after each of the last blocks, all through the final norm.

        The last of the list equals `forward`.
        """
        tokens = self.embed_patches(clip, None)
        found = []
        for block in self.blocks:
            tokens = block(tokens)
            found.append(tokens)
        return [self.norm(one) for one in found[-count:]]

    def tokens_and_attention(
        self, clip: Float[Tensor, "B C *size"]
    ) -> tuple[Float[Tensor, "B N_out D"], Float[Tensor, "B A N"]]:
        """Also returns the last block's attention of CLS to each patch token."""
        tokens = self.embed_patches(clip, None)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        return self._finish(tokens)

    @region
    def _finish(
        self, tokens: Float[Tensor, "B N_out D"]
    ) -> tuple[Float[Tensor, "B N_out D"], Float[Tensor, "B A N"]]:
        tokens, attention = block_with_attention(self.blocks[-1], tokens)
        return self.norm(tokens), attention

    def embed(self, clip: Float[Tensor, "B C *size"]) -> Float[Tensor, "B D"]:
        """Computes the embedding for downstream use: the mean of the patch tokens."""
        return pool_patches(self.forward(clip))

    def _patch_positions(self, grid: tuple[int, ...]) -> Float[Tensor, "1 N D"]:
        positions = self.position_table[:, 1:]
        if grid == self.grid:
            return positions
        return resize_positions(positions[0], self.grid, grid, self.position_interpolation)[None]


class EncoderInput(NamedTuple):
    """What one encoder is to compute."""

    encoder: Encoder
    clip: Float[Tensor, "B C *size"]
    keep: Int[Tensor, "B N_keep"] | None = None
    """Patches to encode; all of them if None."""


def encode_together(inputs: Sequence[EncoderInput]) -> list[Float[Tensor, "B N_out D"]]:
    """Computes what each encoder would by itself, in one pass through the blocks that they share.

    Half as many, larger products: a device starts fewer operations, and the gradient of a weight is
    one product instead of a sum of several.
    """
    blocks = inputs[0].encoder.blocks
    assert all(one.encoder.blocks is blocks for one in inputs)
    sequences = [one.encoder.embed_patches(one.clip, one.keep) for one in inputs]
    groups = tuple((tokens.shape[0], tokens.shape[1]) for tokens in sequences)
    packed = pack(sequences)
    for block in blocks:
        packed = block(packed, groups=groups)
    parts = zip(inputs, unpack(packed, groups), strict=True)
    return [one.encoder.norm(tokens) for one, tokens in parts]


def pool_patches(tokens: Float[Tensor, "B N_all D"]) -> Float[Tensor, "B D"]:
    """Averages the patch tokens in float32, without the CLS token at the front."""
    return tokens[:, 1:].float().mean(dim=1)


def build_encoder(
    model: ModelConfig, modality: Modality, blocks: nn.ModuleList | None = None
) -> Encoder:
    """Builds an encoder with new blocks, or with the `blocks` of another encoder."""
    video, audio, size = model.video, model.audio, model.encoder
    if blocks is None:
        blocks = transformer_blocks(size.width, size.depth, size.num_heads)
    if modality == "video":
        return Encoder(
            patch_size=(video.tubelet_size, video.patch_size, video.patch_size),
            num_channels=_VIDEO_CHANNELS,
            grid=video.grid,
            width=size.width,
            blocks=blocks,
            position_interpolation=model.position_interpolation,
        )
    return Encoder(
        patch_size=(audio.patch_bins, audio.patch_frames),
        num_channels=_AUDIO_CHANNELS,
        grid=audio.grid,
        width=size.width,
        blocks=blocks,
        position_interpolation=model.position_interpolation,
    )

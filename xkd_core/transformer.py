"""Pre-norm transformer blocks; the only module that imports timm.

Blocks have no dropout and no bias for queries, keys and values. `block_with_attention` also returns
the attention of the CLS token, without computing the full attention map.

Sequences of several lengths can go through a block together. Linear layers and norms then see all
tokens in one row, and only attention takes the sequences apart:

    2 clips of 3 tokens, 1 clip of 5      groups = ((2, 3), (1, 5))
    packed    a a a b b b c c c c c       1 x 11 x D
    attention a a a|b b b|c c c c c       each clip by itself

Paper: ViT, arXiv:2010.11929; packed views as in DINOv3, arXiv:2508.10104.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import nn
from torch.utils.checkpoint import checkpoint

from xkd_core.masking import take_tokens
from xkd_core.shapes import Float, Int, Tensor

Groups = tuple[tuple[int, int], ...]
"""Clips and tokens a clip of each group of packed sequences."""

_LONGEST_MAP = 1024
"""Tokens up to which a CPU computes attention as products in bfloat16."""
_LARGEST_MAP = 2**21
"""Entries of attention maps up to which a CPU computes them for all clips at once. Larger maps are
computed clip by clip: one that leaves the cache, in memory that is new to the process, takes twice
the time."""


class SelfAttention(Attention):
    """timm's attention with `attend`, without masks and dropout."""

    def forward(
        self,
        tokens: Float[Tensor, "B N_all D"],
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        groups: Groups | None = None,
        only: Int[Tensor, "B N_only"] | None = None,
    ) -> Float[Tensor, "B N_out D"]:
        """Applies self-attention to the tokens of each clip; with `groups` to packed clips.

        With `only`, the tokens at these positions attend to all tokens, and only they are returned.
        """
        assert attn_mask is None
        assert not is_causal
        projected = self.qkv(tokens)
        if groups is None:
            return self.proj(_mixed(projected, self.num_heads, only))
        assert only is None
        parts = unpack(projected, groups)
        return self.proj(pack([_mixed(part, self.num_heads) for part in parts]))


class TransformerBlock(Block):
    """timm's block, which also takes packed clips."""

    def forward(
        self,
        tokens: Float[Tensor, "B N_all D"],
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        groups: Groups | None = None,
        only: Int[Tensor, "B N_only"] | None = None,
    ) -> Float[Tensor, "B N_out D"]:
        """Applies attention and the MLP; `groups` says how packed tokens belong to clips.

        With `only`, it computes only the tokens at these positions.
        """
        assert attn_mask is None
        assert not is_causal
        mixed = self.attn(self.norm1(tokens), groups=groups, only=only)
        tokens = (tokens if only is None else take_tokens(tokens, only)) + mixed
        return tokens + self.mlp(self.norm2(tokens))


def pack(sequences: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "1 N_packed D"]:
    """Puts the tokens of several batches into one row."""
    return torch.cat([tokens.flatten(0, 1) for tokens in sequences]).unsqueeze(0)


def unpack(packed: Float[Tensor, "1 N_packed D"], groups: Groups) -> list[Float[Tensor, "..."]]:
    """Inverts `pack`."""
    rows = torch.split(packed[0], [clips * length for clips, length in groups])
    return [part.view(*group, -1) for part, group in zip(rows, groups, strict=True)]


def attend(
    query: Float[Tensor, "B A N_out d"],
    key: Float[Tensor, "B A N_all d"],
    value: Float[Tensor, "B A N_all d"],
) -> Float[Tensor, "B A N_out d"]:
    """Computes attention, without storing the attention map except in bfloat16 on a CPU.

    There two matrix products and a softmax take about half the time of PyTorch's fused attention,
    forward and backward. Long sequences stay with the fused one, whose memory is linear.
    """
    B, A, N = key.shape[:3]
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or N > _LONGEST_MAP:
        return F.scaled_dot_product_attention(query, key, value)
    with torch.autocast("cpu", enabled=False):  # it would compute the softmax in float32
        if B * A * query.shape[2] * N <= _LARGEST_MAP:
            return _attend_by_products(query, key, value)
        # unbind, whose gradient is one stack; the gradients of indices would be summed.
        clips = zip(query.unbind(), key.unbind(), value.unbind(), strict=True)
        return torch.stack([_attend_by_products(*clip) for clip in clips])


def transformer_blocks(width: int, depth: int, num_heads: int) -> nn.ModuleList:
    """Builds a stack of blocks whose MLP has four times the width and the exact GELU."""
    return nn.ModuleList(
        # PyTorch's LayerNorm has the published eps of 1e-5; the default of timm is different.
        TransformerBlock(
            width,
            num_heads,
            mlp_ratio=4.0,
            qkv_bias=False,
            norm_layer=nn.LayerNorm,
            attn_layer=SelfAttention,
        )
        for _ in range(depth)
    )


def block_with_attention(
    block: nn.Module, tokens: Float[Tensor, "B N_all D"]
) -> tuple[Float[Tensor, "B N_all D"], Float[Tensor, "B A N"]]:
    """Runs one block; also returns the attention of its CLS query to each patch token, in float32.

    The attention of CLS to itself is dropped without renormalizing the rest, so a row sums to one
    minus that attention.
    """
    attention = block.get_submodule("attn")
    assert isinstance(attention, SelfAttention)
    projected = attention.qkv(block.get_submodule("norm1")(tokens))
    query, key, value = _queries_keys_values(projected, attention.num_heads)
    mixed = rearrange(attend(query, key, value), "b a n d -> b n (a d)")
    tokens = tokens + attention.get_submodule("proj")(mixed)
    tokens = tokens + block.get_submodule("mlp")(block.get_submodule("norm2")(tokens))
    return tokens, _class_attention(query[:, :, 0], key)


def checkpoint_activations(block: nn.Module) -> None:
    """Makes a block recompute its activations in the backward pass instead of storing them."""
    forward = block.forward

    def recomputed(tokens: Tensor, **options: Any) -> Tensor:
        output: Tensor = checkpoint(
            forward, tokens, use_reentrant=False, preserve_rng_state=False, **options
        )
        return output

    block.forward = recomputed


def init_transformer(module: nn.Module) -> None:
    """Initializes linear layers Xavier-uniform with bias 0, and LayerNorms with 1 and 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()


def _attend_by_products(
    query: Float[Tensor, "*B N_out d"],
    key: Float[Tensor, "*B N_all d"],
    value: Float[Tensor, "*B N_all d"],
) -> Float[Tensor, "*B N_out d"]:
    scores = query * query.shape[-1] ** -0.5 @ key.mT
    return scores.softmax(dim=-1) @ value


def _mixed(
    projected: Float[Tensor, "B N_all D_qkv"],
    num_heads: int,
    only: Int[Tensor, "B N_only"] | None = None,
) -> Float[Tensor, "B N_out D"]:
    query, key, value = _queries_keys_values(projected, num_heads)
    if only is not None:
        query = query.gather(2, only[:, None, :, None].expand(-1, num_heads, -1, query.shape[-1]))
    mixed = attend(query, key, value)
    return rearrange(mixed, "b a n d -> b n (a d)")


def _queries_keys_values(
    projected: Float[Tensor, "B N_all D_qkv"], num_heads: int
) -> Float[Tensor, "3 B A N_all d"]:
    return rearrange(projected, "b n (qkv a d) -> qkv b a n d", qkv=3, a=num_heads)


def _class_attention(
    query: Float[Tensor, "B A d"], key: Float[Tensor, "B A N_all d"]
) -> Float[Tensor, "B A N"]:
    with torch.autocast(query.device.type, enabled=False):
        scale = query.shape[-1] ** -0.5
        scores = torch.einsum("bad,band->ban", query.float() * scale, key.float())
        return scores.softmax(dim=-1)[:, :, 1:]

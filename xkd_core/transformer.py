"""Pre-norm transformer blocks; the only module that imports timm.

Blocks have no dropout and no bias for queries, keys and values. `block_with_attention` also returns
the attention of the CLS token, without computing the full attention map.

Paper: ViT, arXiv:2010.11929.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import nn
from torch.utils.checkpoint import checkpoint

from xkd_core.shapes import Float, Tensor

_LONGEST_MAP = 1024
"""Tokens up to which a CPU computes attention as products in bfloat16."""


class SelfAttention(Attention):
    """timm's attention with `attend`, without masks and dropout."""

    def forward(
        self,
        tokens: Float[Tensor, "B N_all D"],
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "B N_all D"]:
        """Applies self-attention to the tokens of each clip."""
        assert attn_mask is None
        assert not is_causal
        mixed = attend(*_queries_keys_values(self, tokens))
        return self.proj(rearrange(mixed, "b a n d -> b n (a d)"))


def attend(
    query: Float[Tensor, "B A N_all d"],
    key: Float[Tensor, "B A N_all d"],
    value: Float[Tensor, "B A N_all d"],
) -> Float[Tensor, "B A N_all d"]:
    """Computes attention, without storing the attention map except in bfloat16 on a CPU.

    There two matrix products and a softmax take about half the time of PyTorch's fused attention,
    forward and backward. Long sequences stay with the fused one, whose memory is linear.
    """
    is_short = query.shape[-2] <= _LONGEST_MAP
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and is_short:
        with torch.autocast("cpu", enabled=False):  # it would compute the softmax in float32
            scores = query * query.shape[-1] ** -0.5 @ key.mT
            return scores.softmax(dim=-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


def transformer_blocks(width: int, depth: int, num_heads: int) -> nn.ModuleList:
    """Builds a stack of blocks whose MLP has four times the width and the exact GELU."""
    return nn.ModuleList(
        # PyTorch's LayerNorm has the published eps of 1e-5; the default of timm is different.
        Block(
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
    query, key, value = _queries_keys_values(attention, block.get_submodule("norm1")(tokens))
    mixed = rearrange(attend(query, key, value), "b a n d -> b n (a d)")
    tokens = tokens + attention.get_submodule("proj")(mixed)
    tokens = tokens + block.get_submodule("mlp")(block.get_submodule("norm2")(tokens))
    return tokens, _class_attention(query[:, :, 0], key)


def checkpoint_activations(block: nn.Module) -> None:
    """Makes a block recompute its activations in the backward pass instead of storing them."""
    forward = block.forward

    def recomputed(tokens: Tensor) -> Tensor:
        output: Tensor = checkpoint(forward, tokens, use_reentrant=False, preserve_rng_state=False)
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


def _queries_keys_values(
    attention: SelfAttention, tokens: Float[Tensor, "B N_all D"]
) -> Float[Tensor, "3 B A N_all d"]:
    packed = attention.qkv(tokens)
    return rearrange(packed, "b n (qkv a d) -> qkv b a n d", qkv=3, a=attention.num_heads)


def _class_attention(
    query: Float[Tensor, "B A d"], key: Float[Tensor, "B A N_all d"]
) -> Float[Tensor, "B A N"]:
    with torch.autocast(query.device.type, enabled=False):
        scale = query.shape[-1] ** -0.5
        scores = torch.einsum("bad,band->ban", query.float() * scale, key.float())
        return scores.softmax(dim=-1)[:, :, 1:]

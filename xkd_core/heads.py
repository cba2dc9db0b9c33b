"""The projection head: maps pooled features to the logits that are aligned and distilled.

MLP, L2 normalization, a linear layer with rows of unit length, and a LayerNorm without parameters.
That LayerNorm gives each row of logits a squared norm close to its width; cross-modal training
collapses without it. As published, both hidden layers share one LayerNorm.

Paper: XKD, arXiv:2211.13929; DINO, arXiv:2104.14294.
"""

import torch
import torch.nn.functional as F
from torch import nn

from xkd_core.shapes import Float, Tensor


class ProjectionHead(nn.Module):
    """Maps features to logits over `output_width` prototypes."""

    def __init__(
        self,
        *,
        width: int,
        hidden_width: int,
        bottleneck_width: int,
        output_width: int,
        share_hidden_norm: bool,
        normalize_output: bool,
    ) -> None:
        super().__init__()
        self.hidden_1 = nn.Linear(width, hidden_width)
        self.norm_1 = nn.LayerNorm(hidden_width)
        self.hidden_2 = nn.Linear(hidden_width, hidden_width)
        self.norm_2 = self.norm_1 if share_hidden_norm else nn.LayerNorm(hidden_width)
        self.bottleneck = nn.Linear(hidden_width, bottleneck_width)
        self.prototypes = nn.Linear(bottleneck_width, output_width, bias=False)
        self.normalize_output = normalize_output
        self.init_weights()

    def init_weights(self) -> None:
        """Initializes all parameters; the prototypes as PyTorch does by default."""
        for layer in (self.hidden_1, self.hidden_2, self.bottleneck):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.norm_1.reset_parameters()
        self.norm_2.reset_parameters()
        self.prototypes.reset_parameters()

    def forward(self, features: Float[Tensor, "*B D"]) -> Float[Tensor, "*B K"]:
        """Computes logits, in float32: MMD resolves distances to one part in ten thousand."""
        hidden = F.gelu(self.norm_1(self.hidden_1(features)))
        hidden = F.gelu(self.norm_2(self.hidden_2(hidden)))
        bottleneck = self.bottleneck(hidden)
        with torch.autocast(features.device.type, enabled=False):
            directions = F.normalize(bottleneck.float(), dim=-1)
            logits = F.linear(directions, F.normalize(self.prototypes.weight.float(), dim=-1))
            return F.layer_norm(logits, logits.shape[-1:]) if self.normalize_output else logits

"""An attentive probe: one query attends to the tokens of a frozen encoder, then a linear layer.

The patch tokens stay as they are; the query, the projections and the layer are trained. It finds
what the mean of all tokens hides, such as a small object.

Source: V-JEPA, arXiv:2404.08471, section 4 (attentive probing), here without its feed-forward part.
"""

import torch
from torch import nn

from xkd_core.shapes import Float, Tensor


class AttentiveProbe(nn.Module):
    """Cross-attention of a learned query to tokens.

    Args:
        width: Width of a token.
        num_classes: Outputs.
        num_heads: Heads of the attention; it must divide the width.
    """

    def __init__(self, width: int, num_classes: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm_out = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B num_classes"]:
        """Computes logits."""
        normed = self.norm(tokens)
        query = self.query.expand(len(tokens), -1, -1)
        pooled, _ = self.attention(query, normed, normed, need_weights=False)
        # Beside the mean, from which attention departs only where that helps.
        return self.head(self.norm_out(pooled[:, 0] + normed.mean(dim=1)))


def train_attentive_probe(
    tokens: Float[Tensor, "B N D"],
    targets: Float[Tensor, "B num_classes"],
    *,
    is_multilabel: bool,
    num_heads: int,
    steps: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> AttentiveProbe:
    """Trains a probe with AdamW, whose rate falls along a cosine; a batch at a time is on `device`.

    Draws nothing from the global random state.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = AttentiveProbe(tokens.shape[2], targets.shape[1], num_heads).to(device)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss_of = nn.BCEWithLogitsLoss() if is_multilabel else nn.CrossEntropyLoss()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(tokens), generator=generator)
    with torch.enable_grad():
        for step in range(steps):
            at = torch.arange(step * batch_size, (step + 1) * batch_size) % len(tokens)
            if int(at[0]) < batch_size:  # begins another pass
                order = torch.randperm(len(tokens), generator=generator)
            rows = order[at]
            loss = loss_of(probe(tokens[rows].to(device).float()), targets[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return probe.eval()

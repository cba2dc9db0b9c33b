"""Which attention is fastest for the sequences of a step? Forward, and backward where one learns.

    python tests/benchmarks/attention.py [--device cuda] [--batch 128] [--repeats 20]

Each sequence of a ViT-B's step is attended to by every implementation that the device has:
PyTorch's cuDNN, FlashAttention and memory-efficient kernels, and two matrix products with a softmax
between them. Inputs are views of one projection, and the output is put in order for the next, as in
a block; results are compared first. Prints milliseconds of each and of the best choice for all.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SEQUENCES = (
    ("video teacher", 393, 12, 64, 12, False),
    ("audio teacher", 561, 12, 64, 12, False),
    ("video student, global", 60, 12, 64, 12, True),
    ("video student, local", 73, 12, 64, 12, True),
    ("audio student, global", 113, 12, 64, 12, True),
    ("audio student, local", 141, 12, 64, 12, True),
    ("video decoder", 393, 12, 32, 4, True),
    ("audio decoder", 561, 12, 32, 4, True),
)
"""Name, tokens, heads, width of a head, blocks of a step, whether it learns."""
KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def main() -> None:
    """Prints a table, and one JSON line last."""
    options = parse()
    table = {}
    for name, tokens, heads, width, blocks, learns in SEQUENCES:
        shape = (options.batch, tokens, 3, heads, width)
        projected = torch.randn(shape, device=options.device, dtype=torch.bfloat16)
        projected.requires_grad_(learns)
        expected = products(projected).detach()
        row = {}
        for kind, attend in implementations(options.device).items():
            try:
                error = (attend(projected).detach() - expected).abs().max().item()
            except RuntimeError:
                continue
            assert error < 0.05, (name, kind, error)
            row[kind] = blocks * milliseconds(lambda a=attend, p=projected: run(a, p), options)
        table[name] = row
        print(f"{name:22} " + "  ".join(f"{kind} {ms:7.2f}" for kind, ms in row.items()))
    for kind in next(iter(table.values())):
        print(f"{kind:22} {sum(row.get(kind, float('nan')) for row in table.values()):7.2f} ms")
    print(f"{'the best of each':22} {sum(min(row.values()) for row in table.values()):7.2f} ms")
    print(json.dumps({"benchmark": "attention", "batch": options.batch, "milliseconds": table}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    return parser.parse_args()


def implementations(device: str) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Ways to attend, by name."""
    kernels = KERNELS if device != "cpu" else {"fused": SDPBackend.FLASH_ATTENTION}
    ways = {name: (lambda p, k=kernel: by_kernel(p, k)) for name, kernel in kernels.items()}
    return {**ways, "products": products}


def by_kernel(projected: torch.Tensor, kernel: SDPBackend) -> torch.Tensor:
    query, key, value = projected.permute(2, 0, 3, 1, 4)
    with sdpa_kernel(kernel):
        mixed = F.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).flatten(2)


def products(projected: torch.Tensor) -> torch.Tensor:
    query, key, value = projected.permute(2, 0, 3, 1, 4)
    scores = query * query.shape[-1] ** -0.5 @ key.mT
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)


def run(attend: Callable[[torch.Tensor], torch.Tensor], projected: torch.Tensor) -> None:
    """Forward; backward too for what learns."""
    if not projected.requires_grad:
        with torch.no_grad():
            attend(projected)
        return
    mixed = attend(projected)
    projected.grad = None
    mixed.backward(mixed.detach())


def milliseconds(work: Callable[[], None], options: argparse.Namespace) -> float:
    """Median time of the device."""
    if options.device == "cpu":
        begun = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - begun)
    for _ in range(3):
        work()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(options.repeats + 1)]
    events[0].record()
    for event in events[1:]:
        for _ in range(5):
            work()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) / 5 for a, b in pairwise(events))


if __name__ == "__main__":
    main()

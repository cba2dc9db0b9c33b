"""How many clips a second does an encoder embed, plainly, compiled and exported?

    python tests/benchmarks/encoder_inference.py [--preset base] [--device cpu] [--batches 1 64]
        [--dtypes float32 bfloat16] [--forms plain compiled exported] [--repeats 5]
        [--warmups 2]

Clips are global views of noise that are on the device already: 32 frames of 112 pixels, 4 s of
sound as 80 x 448 numbers. In bfloat16 the weights are too. Forms take turns. Each embedding is
compared with that of the plain float32 encoder first; the cosine that it must reach is 0.999. A
CPU's seconds are CPU seconds, of one thread unless more are given.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import nn

from xkd_core.config import ModelConfig, TransformerConfig
from xkd_core.encoders import Encoder, build_encoder

PRESETS = {
    "micro": (48, 3, 3),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
"""Width, depth and heads."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLIPS = {"video": (3, 32, 112, 112), "audio": (1, 80, 448)}
FORMS = ("plain", "compiled", "exported")
MIN_COSINE = 0.999

Embed = Callable[[torch.Tensor], torch.Tensor]


class Embedder(nn.Module):
    """`Encoder.embed` as a forward, which is what can be exported."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return self.encoder.embed(clip)


@torch.no_grad()
def main() -> None:
    """Prints a table, and one JSON line last."""
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    width, depth, num_heads = PRESETS[options.preset]
    size = TransformerConfig(width=width, depth=depth, num_heads=num_heads)
    results = []
    for modality in options.modalities:
        encoder = Embedder(build_encoder(ModelConfig(encoder=size), modality).eval())
        encoder = encoder.to(options.device)
        for name in options.dtypes:
            for batch_size in options.batches:
                clips = torch.randn(batch_size, *CLIPS[modality], device=options.device)
                row = measure(encoder, clips, DTYPES[name], options)
                results.append(
                    {"modality": modality, "dtype": name, "batch": batch_size, "forms": row}
                )
                print_row(results[-1])
    print(json.dumps({"benchmark": "encoder_inference", **machine(options), "results": results}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--preset", choices=PRESETS, default="base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--modalities", nargs="+", choices=CLIPS, default=list(CLIPS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmups", type=int, default=2, help="at least 1")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    return parser.parse_args()


def measure(
    encoder: Embedder, clips: torch.Tensor, dtype: torch.dtype, options: argparse.Namespace
) -> dict[str, dict[str, object]]:
    """Seconds of a batch by form, and how close its embeddings are to those in float32."""
    expected = encoder(clips)
    clips = clips.to(dtype)
    own = copy.deepcopy(encoder).to(dtype)
    forms: dict[str, Embed] = {name: make(own, clips, name) for name in options.forms}
    row: dict[str, dict[str, object]] = {}
    for name, embed in forms.items():
        for _ in range(options.warmups):
            embedding = embed(clips)
        cosine = F.cosine_similarity(embedding.float(), expected, dim=-1).min().item()
        assert cosine > MIN_COSINE, (name, cosine)
        row[name] = {"cosine": cosine, "seconds": []}
    for _ in range(options.repeats):
        for name, embed in forms.items():
            row[name]["seconds"].append(timed(embed, clips))
    for values in row.values():
        values["clips_per_second"] = len(clips) / statistics.median(values["seconds"])
    return row


def make(encoder: Embedder, clips: torch.Tensor, form: str) -> Embed:
    """The encoder in one form."""
    if form == "plain":
        return encoder
    if form == "compiled":
        return torch.compile(encoder, fullgraph=True)
    # One program for all sizes of a batch; an example of one clip would fix the size.
    example = clips[:1].repeat(2, *(1 for _ in clips.shape[1:]))
    program = torch.export.export(
        copy.deepcopy(encoder), (example,), dynamic_shapes=({0: torch.export.Dim("B")},)
    )
    return program.module()


def timed(embed: Embed, clips: torch.Tensor) -> float:
    """Seconds of a batch: wall seconds of a device, CPU seconds of a CPU."""
    if clips.device.type == "cpu":
        begun = time.process_time()
        embed(clips)
        return time.process_time() - begun
    torch.cuda.synchronize()
    begun = time.perf_counter()
    embed(clips)
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def print_row(result: dict[str, object]) -> None:
    line = f"{result['modality']} {result['dtype']:8} batch {result['batch']:3}"
    for name, values in result["forms"].items():
        seconds = values["seconds"]
        low, high = result["batch"] / max(seconds), result["batch"] / min(seconds)
        line += f"  {name} {values['clips_per_second']:8.2f} ({low:.2f} to {high:.2f})"
    print(f"{line} clips/s", flush=True)


def machine(options: argparse.Namespace) -> dict[str, object]:
    device = platform.processor() or platform.machine()
    if options.device != "cpu":
        device = torch.cuda.get_device_name()
    return {
        "preset": options.preset,
        "device": device,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        **{name: version(name) for name in ("torch", "timm")},
    }


if __name__ == "__main__":
    main()

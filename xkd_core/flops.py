"""Arithmetic of a training step, and the share of a device's peak that a training reaches.

Model FLOPs count two for each multiplication of linear layers and attention, and twice the forward
pass for the backward one. Work that is repeated to save memory does not count. A ViT-B of the paper
takes 435 GFLOP a clip, so that 1,000 clips/s are 44.0 % of an H100.

Source: model FLOPs utilization, PaLM, arXiv:2204.02311, appendix B; peaks, NVIDIA's data sheets.
"""

import math
import time

import torch

from xkd_core.config import MethodConfig, ModelConfig, num_visible

_PEAK_TFLOPS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "B200": 2250.0,
    "GB200": 2250.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 6000 Ada": 364.2,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "T4": 65.0,
    "V100": 125.0,
}
"""Dense products of bfloat16 (float16 before Ampere) with accumulation in float32, by name; the
longest name that fits counts."""
_MEASURED_SIDE = 1024


def step_flops(config: MethodConfig) -> float:
    """Counts the model FLOPs of one clip's training step: 2 (3 student + teacher) products."""
    views, objective, model = config.views, config.objective, config.model
    width = model.encoder.width
    student = teacher = 0.0
    for section, num_globals, num_locals in (
        (model.video, views.num_video_globals, views.num_video_locals),
        (model.audio, views.num_audio_globals, views.num_audio_locals),
    ):
        num_tokens, num_local = section.num_tokens, math.prod(section.local_grid)
        visible = num_visible(num_tokens, section.mask_ratio)
        embed = section.patch_dim * width
        decoded = _decoder(model, visible, num_tokens, section.patch_dim)
        student += num_globals * (_encoder(model, visible, embed) + decoded + _head(model))
        student += num_locals * (_encoder(model, num_local, embed) + _head(model))
        seen = num_tokens if objective.teacher_view == "global" else num_local
        teacher += _encoder(model, seen, embed) + _head(model)
    return 2.0 * (3.0 * student + teacher)


def device_peak(device: torch.device) -> float | None:
    """Returns a device's FLOP/s in bfloat16, None if its name is not in the table.

    A CPU's peak is measured by a product of two matrices, in about a second.
    """
    if device.type == "cpu":
        return _measured_peak(torch.bfloat16)
    if device.type != "cuda":
        return None
    return peak_by_name(torch.cuda.get_device_name(device))


def peak_by_name(name: str) -> float | None:
    """Returns the FLOP/s of a GPU by the name that its driver gives."""
    fitting = [known for known in _PEAK_TFLOPS if f" {known} " in f" {name.replace('-', ' ')} "]
    return _PEAK_TFLOPS[max(fitting, key=len)] * 1e12 if fitting else None


def _encoder(model: ModelConfig, num_patches: int, embed: int) -> float:
    return num_patches * embed + _blocks(1 + num_patches, model.encoder.width, model.encoder.depth)


def _decoder(model: ModelConfig, visible: int, num_patches: int, patch_dim: int) -> float:
    """Of its last block only the tokens of hidden patches are computed, from the keys of all."""
    width, depth = model.decoder.width, model.decoder.depth
    num_tokens, hidden = 1 + num_patches, num_patches - visible
    last = 3 * num_tokens * width**2 + 9 * hidden * width**2 + 2 * hidden * num_tokens * width
    around = (1 + visible) * model.encoder.width * width + hidden * width * patch_dim
    return float(around + last) + _blocks(num_tokens, width, depth - 1)


def _blocks(num_tokens: int, width: int, depth: int) -> float:
    return float(depth * (12 * num_tokens * width**2 + 2 * num_tokens**2 * width))


def _head(model: ModelConfig) -> float:
    head = model.head
    hidden = model.encoder.width * head.hidden_width + head.hidden_width**2
    return float(hidden + head.bottleneck_width * (head.hidden_width + head.output_width))


def _measured_peak(dtype: torch.dtype) -> float:
    """Takes the fastest of a few products, as other programs can only slow one down."""
    left, right = torch.ones(2, _MEASURED_SIDE, _MEASURED_SIDE, dtype=dtype).unbind()
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - begun)
    return float(2 * _MEASURED_SIDE**3 / min(times))

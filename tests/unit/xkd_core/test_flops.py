"""Facts about the arithmetic of a step."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers.networks import micro_config, micro_model, micro_views
from xkd_core.config import MethodConfig
from xkd_core.flops import device_peak, peak_by_name, step_flops
from xkd_core.losses import initial_centers, losses, teacher_temperatures


def test_a_clip_of_the_paper_takes_435_gflop():
    # 442 as published, which also embeds hidden patches and predicts visible ones.
    assert step_flops(MethodConfig()) == pytest.approx(435.3e9, rel=1e-3)


def test_a_teacher_of_local_views_takes_a_third_less():
    config = MethodConfig.model_validate({"objective": {"teacher_view": "first_local"}})
    assert step_flops(config) == pytest.approx(299e9, rel=0.03)


def test_pytorch_counts_the_same():
    config, views = micro_config(), micro_views()
    model = micro_model()
    # In bfloat16 a CPU computes attention by products, which PyTorch counts.
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(views)
        losses(
            output,
            initial_centers(96),
            config.objective,
            teacher_temperatures(config.objective, 0.0),
        )[0].backward()
    counted = counter.get_total_flops() / views.video_locals.shape[1]
    # It leaves out what is not computed: the gradient by the clips.
    for section in (config.model.video, config.model.audio):
        num_tokens = section.num_visible + math.prod(section.local_grid)
        counted += 2.0 * num_tokens * section.patch_dim * config.model.encoder.width
    assert step_flops(config) == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla T4", 65),
    ],
)
def test_the_peak_follows_from_the_name(name, tflops):
    assert peak_by_name(name) == tflops * 1e12


def test_an_unknown_gpu_has_no_peak():
    assert peak_by_name("NVIDIA Thor") is None


def test_the_peak_of_a_cpu_is_measured():
    peak = device_peak(torch.device("cpu"))
    assert peak is not None
    assert peak > 1e8

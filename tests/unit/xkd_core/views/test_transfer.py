"""Views on a device need one copy from the host, and nothing back."""

import pytest
import torch

from tests.helpers.pretend_device import DEVICE, DeviceError, pretend_device
from tests.unit.xkd_core.views.test_views import AUDIO, CONFIG, SIZES, make_batch, parameters_of
from xkd_core.config import MethodConfig, ViewsConfig
from xkd_core.views import video as video_views
from xkd_core.views.log_mel import LogMel
from xkd_core.views.parameters import draw_view_parameters
from xkd_core.views.transfer import copy_together
from xkd_core.views.views import ClipBatch, make_views

ALL_KINDS = MethodConfig(
    model=CONFIG.model,
    views=ViewsConfig(
        num_video_globals=2, num_audio_globals=2, num_video_locals=3, num_audio_locals=2
    ),
)


@pytest.mark.parametrize("clips_at_once", [1, 4, 6])
def test_views_take_one_copy_that_nobody_waits_for(monkeypatch, clips_at_once):
    values = clips_at_once * make_batch().frames[0].numel()
    monkeypatch.setattr(video_views, "CUDA_CHUNK_VALUES", values)
    batch, parameters = make_batch(), parameters_of(len(SIZES), ALL_KINDS)
    expected = make_views(batch, parameters, ALL_KINDS, LogMel(AUDIO))
    with pretend_device(monkeypatch) as device:
        with device.allowed():
            there = ClipBatch(*(tensor.to(DEVICE) for tensor in batch))
            log_mel = LogMel(AUDIO).to(DEVICE)
        device.copies.clear()
        views = make_views(there, parameters, ALL_KINDS, log_mel)
        assert len(device.copies) == 1
        assert device.reads == []
        for name, view in views._asdict().items():
            assert view.device == DEVICE
            with device.allowed():
                made = view.cpu()
            torch.testing.assert_close(made, getattr(expected, name), atol=1e-4, rtol=1e-4)


def test_copies_are_the_same_to_the_bit(monkeypatch):
    parameters = draw_view_parameters(["a", "b", "c"], [0, 1, 2], 0, ALL_KINDS)
    tree = (parameters, (torch.zeros(0, dtype=torch.int64), torch.tensor(True)), 7, "name")
    assert copy_together(tree, torch.device("cpu")) is tree
    with pretend_device(monkeypatch) as device:
        there = copy_together(tree, DEVICE)
        with device.allowed():
            compare(there, tree)
    assert len(device.copies) == 1


def compare(there, tree):
    if isinstance(tree, torch.Tensor):
        assert there.device == DEVICE
        assert (there.dtype, there.shape) == (tree.dtype, tree.shape)
        assert torch.equal(there.cpu(), tree)
    elif isinstance(tree, tuple):
        assert type(there) is type(tree)
        for one, other in zip(there, tree, strict=True):
            compare(one, other)
    else:
        assert there == tree


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda x: x + torch.ones(3), id="operands of two devices"),
        pytest.param(lambda x: torch.stack([x[0], torch.tensor(1.0)]), id="a number of the host"),
        pytest.param(lambda x: x[torch.tensor([1])], id="an index on the host"),
        pytest.param(lambda x: x[[0, 2]], id="an index of numbers"),
        pytest.param(lambda x: x * x.new_tensor([1.0, 2.0, 3.0]), id="constants of the host"),
        pytest.param(lambda x: torch.ones(3).to(x.device), id="a copy to the device"),
        pytest.param(lambda x: x[x > 1], id="a mask"),
        pytest.param(lambda x: x.nonzero(), id="positions"),
        pytest.param(lambda x: x.sum().item(), id="a number"),
        pytest.param(lambda x: x.tolist(), id="numbers"),
        pytest.param(lambda x: x.numpy(), id="an array"),
        pytest.param(lambda x: bool(x.any()), id="a decision"),
        pytest.param(lambda x: torch.ones(3).copy_(x), id="a copy to the host"),
    ],
)
def test_the_pretended_device_finds(monkeypatch, fault):
    with pretend_device(monkeypatch), pytest.raises(DeviceError):
        fault(torch.ones(3, device=DEVICE))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_views_do_not_wait_for_a_gpu():
    batch = ClipBatch(*(tensor.cuda() for tensor in make_batch()))
    parameters, log_mel = parameters_of(len(SIZES), ALL_KINDS), LogMel(AUDIO).cuda()
    expected = make_views(batch, parameters, ALL_KINDS, log_mel)
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = make_views(batch, parameters, ALL_KINDS, log_mel)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(views, expected, strict=True):
        assert torch.equal(one, other)

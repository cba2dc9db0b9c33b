"""Facts about what is recorded of a GPU; the driver's library is played, nothing of ours is."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from pipelines.training.gpu_metrics import GpuMetrics

UUID = "8d3c2f10-0000-1111-2222-333344445555"
GPU = torch.device("cuda", 0)


class NvmlError(Exception):
    """What every function of the library raises."""


def unsupported(*_):
    raise NvmlError("Not Supported")


@pytest.fixture
def nvml(monkeypatch):
    """A driver with one GPU that is known by its id."""
    module = ModuleType("pynvml")
    module.NVMLError = NvmlError
    module.NVML_TEMPERATURE_GPU = 0
    module.nvmlInit = lambda: None

    def handle_of(uuid):
        if uuid != f"GPU-{UUID}":
            raise NvmlError("Not Found")
        return "handle"

    def of(value):
        def read(handle, *_):
            assert handle == "handle"
            return value

        return read

    module.nvmlDeviceGetHandleByUUID = handle_of
    module.nvmlDeviceGetUtilizationRates = of(SimpleNamespace(gpu=93, memory=40))
    module.nvmlDeviceGetMemoryInfo = of(SimpleNamespace(used=20 * 2**30, total=80 * 2**30))
    module.nvmlDeviceGetPowerUsage = of(612_500)
    module.nvmlDeviceGetTemperature = of(71)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    properties = SimpleNamespace(uuid=UUID)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    return module


def test_what_the_driver_tells_is_recorded(nvml):
    assert GpuMetrics(GPU).read() == {
        "speed/gpu_busy": 0.93,
        "speed/gpu_memory": 0.25,
        "speed/gpu_watts": 612.5,
        "speed/gpu_celsius": 71.0,
    }


def test_what_a_virtual_gpu_does_not_tell_is_absent(nvml):
    nvml.nvmlDeviceGetPowerUsage = unsupported
    assert GpuMetrics(GPU).read().keys() == {
        "speed/gpu_busy",
        "speed/gpu_memory",
        "speed/gpu_celsius",
    }


@pytest.mark.parametrize("missing", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_without_a_driver_nothing_is_recorded(nvml, missing):
    setattr(nvml, missing, unsupported)
    assert GpuMetrics(GPU).read() == {}


def test_without_the_library_nothing_is_recorded(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuMetrics(GPU).read() == {}


def test_a_cpu_needs_no_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuMetrics(torch.device("cpu")).read() == {}

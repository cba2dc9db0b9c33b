"""How busy, full and hot this worker's GPU is, by NVIDIA's management library if it is installed.

Recorded with the throughput. A GPU that is busy all the time and still slow is too hot or limited
in power; one that is idle at times waits for clips or for the host.

Source: `nvidia-ml-py`, the module `pynvml`.
"""

from collections.abc import Callable
from typing import Any

import torch


class GpuMetrics:
    """Reads one GPU; without a GPU or the library there is nothing to read."""

    def __init__(self, device: torch.device) -> None:
        self._nvml: Any = None
        if device.type != "cuda":
            return
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            # By its id: CUDA_VISIBLE_DEVICES renumbers devices for CUDA and not for NVML.
            uuid = torch.cuda.get_device_properties(device).uuid
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except pynvml.NVMLError:
            return
        self._nvml = pynvml

    def read(self) -> dict[str, float]:
        """Returns what the driver tells, by metric name; a value that it does not tell is absent.

        `gpu_busy` and `gpu_memory` are shares. Power is in watts, temperature in degrees Celsius.
        """
        if self._nvml is None:
            return {}
        nvml, handle, numbers = self._nvml, self._handle, {}
        readers: dict[str, Callable[[], float]] = {
            "gpu_busy": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "gpu_memory": lambda: _share(nvml.nvmlDeviceGetMemoryInfo(handle)),
            "gpu_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "gpu_celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        }
        for name, read in readers.items():
            try:
                numbers[f"speed/{name}"] = float(read())
            except nvml.NVMLError:  # virtual GPUs tell some of them only
                continue
        return numbers


def _share(memory: Any) -> float:
    return float(memory.used / memory.total)

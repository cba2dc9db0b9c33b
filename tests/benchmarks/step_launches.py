"""How many operations a step of ours gives to its device; for `train_step.py`."""

import torch
from step_bench import Bench
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = {"view", "detach", "t", "transpose", "expand", "unsqueeze", "squeeze", "permute", "select"}
VIEWS |= {"slice", "split", "unbind", "_unsafe_view", "alias", "diagonal", "split_with_sizes"}

STARTS = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")


class Counter(TorchDispatchMode):
    """Counts operations that are no mere views; compiled code hides its own."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **(kwargs or {}))


def launches_of(bench: Bench, dtype: torch.dtype | None) -> dict[str, int]:
    """Kernels and copies that a GPU did, and what the host started; or the operations of a CPU."""
    if bench.device == "cpu":
        with Counter() as counter:
            bench.ours(dtype)
        return {"operations": counter.count}
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        bench.ours(dtype)
        bench.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    events = profiler.events()
    return {
        "by the device": sum(event.device_type == on_device for event in events),
        "by the host": sum(event.name.startswith(STARTS) for event in events),
    }

"""How fast is a training step, against plain PyTorch and the published arithmetic, and where is it?

    python tests/benchmarks/train_step.py [--preset base] [--batch 2] [--device cpu] [--dtypes
        float32 bfloat16] [--against plain published published-bfloat16] [--compile off] [--graph]
        [--views] [--repeats 5] [--threads 1] [--no-parts] [--no-packed] [--keep-memory]
        [--profile FILE]

First both are shown to be the same: at the smallest size over three steps, and at the size that is
measured by their losses and the norms of their gradients. Then steps are taken in turns on the same
parameters, and each part of ours is measured forward and backward. With `--views` ours begins with
uint8 frames and int16 samples on the device. Model FLOPs are counted as two for each multiplication
of the linear layers and the attention, backward twice forward. With one thread a CPU's seconds are
CPU seconds, so that they mean something beside other work; with more they are of the wall, because
threads that wait for each other use the CPU, too. `--keep-memory` lets the process keep what it
frees, as a training on a CPU does; all kinds of step then gain. `--no-packed` passes each view
through the blocks by itself.

On a CUDA device the published arithmetic is also taken as float32, without TF32; ours must then
neither wait for the device nor compile again after its second step, or this program fails.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import resource
import statistics
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from step_bench import (
    DTYPES,
    OTHERS,
    PRESETS,
    Bench,
    check_three_steps,
    method,
    nothing_unexpected,
    timed,
)
from step_launches import launches_of
from step_parts import measure_parts

from pipelines.training.host_memory import keep_freed_memory
from xkd_core.config import MethodConfig
from xkd_core.flops import device_peak, step_flops
from xkd_core.step_graph import EAGER_STEPS


def main() -> None:
    """Prints tables, and one JSON line last."""
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.keep_memory:
        keep_freed_memory()
    peaks = peak_memory(options) if options.device == "cpu" and options.memory else {}
    if not options.repeats:
        print(json.dumps({"benchmark": "train_step", **machine(options), "peak_bytes": peaks}))
        return
    check_three_steps()
    config = method(options.preset)
    bench = Bench(config, options)
    bench.check_same_loss()
    seconds = measure_steps(bench, options)
    peaks |= bench.peaks
    report_steps(seconds, peaks, config, options)
    launches = launches_of(bench, DTYPES[options.dtypes[-1]])
    print(f"operations of a step of ours: {launches}")
    parts = measure_parts(bench, options) if options.parts else {}
    if options.profile:
        profile(bench, options)
    results = {"seconds": seconds, "peak_bytes": peaks, "parts": parts}
    results |= {"launches": launches, "model_flops": step_flops(config) * options.batch}
    print(json.dumps({"benchmark": "train_step", **machine(options), "results": results}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--preset", choices=PRESETS, default="base")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    modes = ("off", "blocks", "default", "reduce-overhead", "max-autotune-no-cudagraphs")
    parser.add_argument("--compile", choices=modes, default="off", help="mode of torch.compile")
    parser.add_argument("--graph", action="store_true", help="replay ours as one CUDA graph")
    parser.add_argument("--views", action="store_true", help="make the views in the step")
    parser.add_argument("--against", nargs="*", choices=OTHERS, default=list(OTHERS))
    parser.add_argument("--no-parts", dest="parts", action="store_false")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--no-packed", dest="packed", action="store_false")
    parser.add_argument("--keep-memory", action="store_true")
    parser.add_argument("--repeats", type=int, default=5, help="0: only the memory of a CPU")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--profile", type=Path, help="write a table and a trace of one step there")
    return parser.parse_args()


def measure_steps(bench: Bench, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each kind of step, taken in turns."""
    kinds: dict[str, Callable[[], None]] = {
        name: lambda name=name: bench.other(name) for name in options.against
    }
    for name in options.dtypes:
        kinds[f"ours {name}"] = lambda dtype=DTYPES[name]: bench.ours(dtype)
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for name, step in kinds.items():
        for _ in range(EAGER_STEPS + 1 if options.graph else 2):
            timed(bench, step)
        if bench.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            step()
            bench.peaks[name] = torch.cuda.max_memory_allocated()
    for _ in range(options.repeats):
        for name, step in kinds.items():
            with nothing_unexpected(bench) if name.startswith("ours") else contextlib.nullcontext():
                seconds[name].append(timed(bench, step))
    return seconds


def report_steps(
    seconds: dict[str, list[float]],
    peaks: dict[str, int],
    config: MethodConfig,
    options: argparse.Namespace,
) -> None:
    flops = step_flops(config) * options.batch
    peak = device_peak(torch.device(options.device))
    print(
        f"{options.preset}, batch {options.batch}, {flops / options.batch / 1e9:.1f} GFLOP a clip"
    )
    for name, values in seconds.items():
        middle = statistics.median(values)
        line = f"{name:15} {middle:8.3f} s ({min(values):.3f} to {max(values):.3f})"
        line += f" {options.batch / middle:8.2f} clips/s {flops / middle / 1e12:7.2f} TFLOP/s"
        if peak:
            line += f" {flops / middle / peak:6.1%} of peak"
        for other in options.against if name.startswith("ours") else ():
            ratios = [a / b for a, b in zip(seconds[other], values, strict=True)]
            line += f"\n    {statistics.median(ratios):5.2f} x ({min(ratios):.2f} to "
            line += f"{max(ratios):.2f}) {other}"
        if name in peaks:
            line += f"  peak {peaks[name] / 2**30:.2f} GiB"
        print(line)


def peak_memory(options: argparse.Namespace) -> dict[str, int]:
    """Bytes that two steps of each kind need at most, each in a process of its own."""
    kinds = list(options.against)
    kinds += [f"ours {name}" for name in options.dtypes]
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        values = pool.map(peak_of, [(kind, options) for kind in kinds], chunksize=1)
    return dict(zip(kinds, values, strict=True))


def peak_of(task: tuple[str, argparse.Namespace]) -> int:
    """What the process holds at most above what it holds before the networks are made."""
    kind, options = task
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bench = Bench(method(options.preset), options)
    for _ in range(2):
        if kind in OTHERS:
            bench.other(kind)
        else:
            bench.ours(DTYPES[kind.removeprefix("ours ")])
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def profile(bench: Bench, options: argparse.Namespace) -> None:
    """Writes the operations of one step by their time, and a trace for a browser."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    sort_by = "self_cpu_time_total"
    if bench.device != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        sort_by = "self_cuda_time_total"
    with torch.profiler.profile(activities=activities) as profiler:
        bench.ours(DTYPES[options.dtypes[-1]])
        bench.synchronize()
    table = profiler.key_averages().table(sort_by=sort_by, row_limit=40, max_name_column_width=60)
    options.profile.write_text(table)
    profiler.export_chrome_trace(str(options.profile.with_suffix(".json.gz")))
    print("\n".join(table.splitlines()[:24]))


def machine(options: argparse.Namespace) -> dict[str, object]:
    device = platform.processor() or platform.machine()
    if options.device != "cpu":
        device = torch.cuda.get_device_name()
    return {
        "preset": options.preset,
        "batch": options.batch,
        "compile": options.compile,
        "views": options.views,
        "packed": options.packed,
        "graph": options.graph,
        "keep_memory": options.keep_memory,
        "device": device,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        **{name: version(name) for name in ("torch", "timm", "numpy")},
    }


if __name__ == "__main__":
    main()

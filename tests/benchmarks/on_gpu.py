"""All that is worth measuring on one GPU, in under 8 minutes, into one JSON file and one page.

    python tests/benchmarks/on_gpu.py --out FOLDER [--device cuda] [--preset base]
        [--batches 32 128] [--seconds 480] [--train-seconds 90] [--only NAME ...] [--list]

Needs torch, timm, einops, torchaudio, NumPy, pydantic, safetensors, pytest. Each section is a
process of its own with a time limit; what it printed is kept if it fails, and both files are
written after each section. `--list` prints what it would do and does nothing.
`--device cpu --preset micro --batches 2 --train-seconds 2` rehearses it.

    tests      tests of xkd_core that need a GPU
    ladder     the step: eager, each view by itself, compiled in blocks, larger batches, one CUDA
               graph; against plain PyTorch and the published composition in the same process. With
               clips/s, share of peak, memory, parts, operations; a step of ours that waits for the
               device fails its section
    views      the step with its views; a table of operations and a trace
    inference  clips that an encoder embeds in a second
    products   bfloat16 and FP8 matrix products at the widths of a ViT-B
    attention  each kernel for each sequence of a step
    training   90 s of a ViT-S on clips that it draws, k-NN before and after
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECTION_SECONDS = 150.0


def main() -> int:
    """Runs section after section; fails if one of them did."""
    options = parse()
    if options.products:
        print(json.dumps(products(options.device)))
        return 0
    chosen = [one for one in sections(options) if not options.only or one[0] in options.only]
    if options.list:
        for name, command in chosen:
            print(f"{name}: {' '.join([Path(command[0]).name, *command[1:]])}")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds
    results: dict[str, dict[str, Any]] = {}
    for name, command in chosen:
        left = min(deadline - time.monotonic(), SECTION_SECONDS)
        results[name] = run(command, left) if left > 1 else {"status": "no time left"}
        print(f"{name}: {results[name]['status']}", flush=True)
        write(options, results)
    return int(any(result["status"] != "done" for result in results.values()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "on_gpu")))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", default="base")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--train-seconds", type=float, default=90.0)
    parser.add_argument("--only", nargs="+", help="names of sections, as --list prints them")
    parser.add_argument("--list", action="store_true", help="print the sections and their commands")
    parser.add_argument("--products", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def sections(options: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Names and commands, the most important first."""
    step = [str(HERE / "train_step.py"), "--device", options.device, "--preset", options.preset]
    step += ["--dtypes", "bfloat16", "--no-memory"]
    first, last, on_gpu = options.batches[0], options.batches[-1], options.device != "cpu"
    others = ["--against", "plain", "published-bfloat16"]
    alone, quick = ["--against"], ["--repeats", "5", "--no-parts"]
    if on_gpu:
        tests = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
        yield "tests", [*tests, "tests/unit/xkd_core"]
    yield "eager", [*step, "--batch", str(first), *others, "--repeats", "5"]
    apart = ["--batch", str(first), "--no-packed", *quick]
    yield "eager, each view by itself", [*step, *apart, *alone]
    if on_gpu:
        for batch in options.batches:
            compiled = ["--batch", str(batch), "--compile", "blocks", *quick]
            against = others if batch == last else alone
            yield f"blocks compiled, {batch} clips", [*step, *compiled, *against]
        graph = ["--batch", str(first), "--compile", "blocks", "--graph", *quick]
        yield f"one CUDA graph, {first} clips", [*step, *graph, *alone]
    table = ["--profile", str(options.out / "profile.txt")]
    views = ["--batch", str(first), "--views", *quick, *table]
    yield "with views, and a profile", [*step, *views, *alone]
    yield "inference", inference(options)
    yield "products", [str(HERE / "on_gpu.py"), "--products", "--device", options.device]
    attention = ["--device", options.device, "--batch", str(first)]
    yield "attention", [str(HERE / "attention.py"), *attention]
    yield "training", training(options)


def training(options: argparse.Namespace) -> list[str]:
    """A ViT-S with compiled blocks; the smallest networks and few clips where it is rehearsed."""
    command = [str(HERE / "gpu_training.py"), "--device", options.device]
    command += ["--train-seconds", str(options.train_seconds)]
    if options.device == "cpu":
        return [*command, "--preset", options.preset, "--batch", "4", "--clips-per-kind", "2"]
    return [*command, "--preset", "small", "--workers", str(os.cpu_count()), "--compile"]


def inference(options: argparse.Namespace) -> list[str]:
    command = [str(HERE / "encoder_inference.py"), "--device", options.device]
    command += ["--preset", options.preset, "--dtypes", "bfloat16", "--repeats", "3"]
    if options.device == "cpu":
        return [*command, "--batches", "2", "--forms", "plain"]
    return [*command, "--batches", "1", "256", "--forms", "plain", "compiled"]


def run(command: list[str], seconds: float) -> dict[str, Any]:
    """Runs a section; its last line is its result if that is JSON."""
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            timeout=seconds,
            check=False,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        status = "done" if done.returncode == 0 else f"failed with {done.returncode}"
        output = done.stdout
    except subprocess.TimeoutExpired as expired:
        status, output = f"stopped after {seconds:.0f} s", _text(expired.stdout)
    lines = output.strip().splitlines()
    result: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - begun, 1)}
    if lines and lines[-1].startswith("{"):
        result["result"] = json.loads(lines.pop())
    return {**result, "output": lines[-60:]}


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def products(device: str) -> dict[str, Any]:
    """TFLOP/s of bfloat16 and FP8 products of 128 clips' tokens; why FP8 is not built."""
    table: dict[str, Any] = {}
    for tokens, width_in, width_out in ((7680, 768, 3072), (50304, 768, 3072), (50304, 3072, 768)):
        if device == "cpu":
            tokens //= 64
        left = torch.randn(tokens, width_in, device=device, dtype=torch.bfloat16)
        right = torch.randn(width_out, width_in, device=device, dtype=torch.bfloat16).T
        flops = 2.0 * tokens * width_in * width_out
        row: dict[str, Any] = {"bfloat16": flops / seconds_of(lambda a=left, b=right: a @ b)}
        try:
            one = torch.ones((), device=device)
            row["fp8, casts included"] = flops / seconds_of(
                lambda a=left, b=right, s=one: torch._scaled_mm(
                    a.to(torch.float8_e4m3fn),
                    b.to(torch.float8_e4m3fn),
                    scale_a=s,
                    scale_b=s,
                    out_dtype=torch.bfloat16,
                )
            )
        except (RuntimeError, NotImplementedError, ValueError) as error:
            row["fp8, casts included"] = str(error).splitlines()[0][:200]
        table[f"{tokens} x {width_in} x {width_out}"] = row
    return table


def seconds_of(work: Any, repeats: int = 10) -> float:
    """Mean seconds of some calls, after warm-up."""
    for _ in range(3):
        work()
    synchronize()
    begun = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize()
    return (time.perf_counter() - begun) / repeats


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def write(options: argparse.Namespace, results: dict[str, dict[str, Any]]) -> None:
    """Writes both files anew."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    head = {"device": name, "torch": torch.__version__, "load": os.getloadavg()}
    (options.out / "on_gpu.json").write_text(json.dumps({**head, "sections": results}, indent=1))
    lines = [f"# The step on one {name}, torch {torch.__version__}", ""]
    for section, result in results.items():
        lines += [f"## {section}: {result['status']}, {result.get('seconds', 0)} s", "", "```"]
        lines += result.get("output", [])
        if section == "products":
            lines.append(json.dumps(result.get("result", {}), indent=1))
        lines += ["```", ""]
    (options.out / "on_gpu.md").write_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())

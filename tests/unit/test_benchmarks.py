"""The programs are run by hand and seldom; a name that they import must not go unnoticed."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_what_a_benchmark_imports_is_there(name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    importlib.import_module(name)


def test_the_script_for_a_gpu_needs_no_cluster_no_tracking_and_no_codec():
    """It is for machines that have PyTorch and little else."""
    names = ("on_gpu", "train_step", "gpu_training", "encoder_inference")
    absent = ("ray", "mlflow", "av", "pyarrow", "pandas", "sklearn", "optuna")
    program = (
        f"import sys\nfor name in {absent}: sys.modules[name] = None\nimport {', '.join(names)}"
    )
    environment = {**os.environ, "PYTHONPATH": f"{BENCHMARKS}:{BENCHMARKS.parents[1]}"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_script_for_a_gpu_lists_what_it_would_do(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, str(BENCHMARKS / "on_gpu.py"), "--list", "--out", str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    names = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert names[:3] == ["tests", "eager", "eager, each view by itself"]
    assert {"blocks compiled, 128 clips", "training", "inference", "tests"} <= set(names)
    assert not out.exists()


@pytest.mark.slow
def test_the_script_for_a_gpu_is_rehearsed_on_a_cpu(tmp_path):
    """Every section of it that a CPU has, at the smallest size."""
    command = [sys.executable, str(BENCHMARKS / "on_gpu.py"), "--out", str(tmp_path)]
    size = ["--device", "cpu", "--preset", "micro", "--batches", "2", "--seconds", "400"]
    size += ["--train-seconds", "1"]
    done = subprocess.run([*command, *size], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "on_gpu.json").read_text())["sections"]
    assert set(results) == {
        "eager",
        "eager, each view by itself",
        "with views, and a profile",
        "inference",
        "products",
        "attention",
        "training",
    }
    packed = results["eager"]["result"]["results"]["launches"]
    apart = results["eager, each view by itself"]["result"]["results"]["launches"]
    assert packed["operations"] < apart["operations"]
    trained = results["training"]["result"]
    assert trained["steps"] > 0
    assert not trained["not_finite"]
    assert set(trained["knn_before"]) == set(trained["knn_after"]) == {"video", "audio"}
    seconds = results["eager"]["result"]["results"]["seconds"]
    assert set(seconds) == {"plain", "published-bfloat16", "ours bfloat16"}
    assert "plain" in (tmp_path / "on_gpu.md").read_text()
    assert (tmp_path / "profile.txt").stat().st_size

"""The programs are run by hand and seldom; a name that they import must not go unnoticed."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_what_a_benchmark_imports_is_there(name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    importlib.import_module(name)


@pytest.mark.slow
def test_the_script_for_a_gpu_is_rehearsed_on_a_cpu(tmp_path):
    """Every section of it that a CPU has, at the smallest size."""
    command = [sys.executable, str(BENCHMARKS / "on_gpu.py"), "--out", str(tmp_path)]
    size = ["--device", "cpu", "--preset", "micro", "--batches", "2", "--seconds", "200"]
    done = subprocess.run([*command, *size], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "on_gpu.json").read_text())["sections"]
    assert set(results) == {"eager", "with views", "profile", "products"}
    seconds = results["eager"]["result"]["results"]["seconds"]
    assert set(seconds) == {"plain", "published-bfloat16", "ours bfloat16"}
    assert "plain" in (tmp_path / "on_gpu.md").read_text()
    assert (tmp_path / "profile.txt").stat().st_size

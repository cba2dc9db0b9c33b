"""Programs of users, run in a process that cannot import this checkout."""

import json
import os
import subprocess
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2]
_WITHOUT_CHECKOUT = f"""
import importlib.util, sys
sys.path[:] = [path for path in sys.path if path not in ("", {str(_CHECKOUT)!r})]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder)]
for name in ("xkd_core", "pipelines"):
    assert importlib.util.find_spec(name) is None, name
import json, numpy as np, torch

def fine_tuned(network, parameters):
    optimizer = torch.optim.SGD(parameters, 0.01)
    losses = []
    for _ in range(6):
        loss = (network() - 1.0).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1], losses
    return losses
"""


def run_isolated(program: str, folder: Path, *arguments: str):
    """What a program prints last, which is JSON."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_CHECKOUT + program, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])

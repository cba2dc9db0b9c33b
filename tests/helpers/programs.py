"""Runs the programs as a user does: each in a process of its own."""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ray_jobs.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[2]

TINY = (
    "name=tiny",
    "synthetic.num_clips=24",
    "ingest.sources_per_shard=6",
    "pretrain.epochs=3",
    "pretrain.batch_size=8",
    "pretrain.log_every=2",
    "pretrain.checkpoint_every=3",
    "pretrain.optimizer.warmup_epochs=1",
    "pretrain.model.encoder={width: 48, depth: 2, num_heads: 3}",
    "pretrain.model.decoder={width: 32, depth: 1, num_heads: 2}",
    "pretrain.model.head={hidden_width: 64, bottleneck_width: 32, output_width: 64}",
)
"""Overrides of the smoke run: 24 clips, a few steps."""


@dataclass(frozen=True)
class Done:
    """A program that ended."""

    code: int
    out: str
    err: str


def run_program(
    job: str, *arguments: str, home: Path, timeout: float = 280, **environment: str
) -> Done:
    """Runs `python -m ray_jobs.<job>` as a user would, with `home` as XKD_HOME."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    }
    done = subprocess.run(
        [sys.executable, "-m", f"ray_jobs.{job}", *arguments],
        cwd=REPOSITORY,
        env=inherited | {"XKD_HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def run_here(job: str, *arguments: str, home: Path) -> Done:
    """Runs `xkd JOB` in this process, where a job that starts nothing takes no time to import."""
    out, err = io.StringIO(), io.StringIO()
    handlers, handler = list(logging.root.handlers), signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.setenv("XKD_HOME", str(home))
        patch.chdir(REPOSITORY)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main([job, *arguments])
        finally:
            logging.root.handlers[:] = handlers
            signal.signal(signal.SIGTERM, handler)
    return Done(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class TinyRun:
    """A finished run of the main job."""

    home: Path
    done: Done

    @property
    def folder(self) -> Path:
        """What the run left."""
        return self.home / "runs" / "tiny"

    @property
    def tracking_uri(self) -> str:
        """Its MLflow."""
        return f"sqlite:///{self.home}/mlflow.db"

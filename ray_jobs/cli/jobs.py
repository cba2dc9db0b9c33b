"""The table of jobs, from which `xkd --help` is printed without importing any job."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pipelines.config.base import JobConfig


class JobSummary(NamedTuple):
    """What the command line needs to know about a job before importing it."""

    name: str
    about: str
    schema_path: str
    """Module and class of its settings, as `module:Class`."""
    first: tuple[str, ...]
    """The most common settings."""
    media: str | None = None
    """The setting that the first argument sets if it is not a configuration."""
    target: str | None = None
    """The setting that a second argument sets."""
    is_path: bool = True
    """Whether the first argument is the path or URI of media."""

    @property
    def module(self) -> str:
        """Name of the module in `ray_jobs`."""
        return self.name.replace("-", "_")

    def schema(self) -> type[JobConfig]:
        """Imports the schema of the job's settings."""
        module, _, name = self.schema_path.partition(":")
        found: type[JobConfig] = getattr(importlib.import_module(module), name)
        return found


_SUMMARIES = (
    JobSummary(
        "run",
        "The main job, from media to registered encoders and a report.",
        "pipelines.config.run:RunConfig",
        (
            "input",
            "name",
            "output",
            "ingest.dataset",
            "pretrain.epochs",
            "pretrain.batch_size",
            "pretrain.num_workers",
            "pretrain.use_gpu",
        ),
        media="input",
    ),
    JobSummary(
        "ingest",
        "Turns a folder or list of media into a clip dataset.",
        "pipelines.config.ingest:IngestConfig",
        ("input", "output", "dataset", "fold", "num_workers"),
    ),
    JobSummary(
        "dataset",
        "Writes a page about a clip dataset: its content, doubtful clips, and leaks.",
        "pipelines.config.dataset:DatasetConfig",
        ("dataset", "against", "output"),
        media="dataset",
    ),
    JobSummary(
        "export",
        "Writes a clip dataset as tar files for WebDataset.",
        "pipelines.config.export:ExportConfig",
        ("dataset", "output", "format", "splits"),
        media="dataset",
        target="output",
    ),
    JobSummary(
        "pretrain",
        "Trains encoders on a clip dataset: XKD on Ray Train.",
        "pipelines.config.pretrain:PretrainConfig",
        ("dataset", "name", "output", "epochs", "batch_size", "num_workers", "use_gpu", "resume"),
    ),
    JobSummary(
        "sweep",
        "Finds settings for a long training by many short ones: Ray Tune over Ray Train.",
        "pipelines.config.sweep:SweepConfig",
        ("dataset", "name", "output", "space", "search.num_trials", "max_concurrent_trials"),
    ),
    JobSummary(
        "evaluate",
        "Scores the features of an encoder: k-NN, probes, SVM and retrieval.",
        "pipelines.config.evaluate:EvaluateConfig",
        ("checkpoint", "dataset", "output", "use_gpu"),
    ),
    JobSummary(
        "suite",
        "One encoder on several datasets, with the published figures beside: one card.",
        "pipelines.config.suite:SuiteConfig",
        ("checkpoint", "suite", "output"),
    ),
    JobSummary(
        "promote",
        "Registers the encoders of a checkpoint; better ones get the alias.",
        "pipelines.config.promote:PromoteConfig",
        ("checkpoint", "scores", "model_prefix", "alias"),
    ),
    JobSummary(
        "demote",
        "An alias goes back to an earlier version of a registered encoder.",
        "pipelines.config.promote:DemoteConfig",
        ("model", "to", "alias", "reason"),
    ),
    JobSummary(
        "pull",
        "Copies a registered model into a folder for PyTorch, transformers, ONNX or MLflow.",
        "pipelines.config.pull:PullConfig",
        ("model", "output", "export"),
        media="model",
        target="output",
        is_path=False,
    ),
    JobSummary(
        "embed",
        "Runs a registered model over any media and writes embeddings as Parquet.",
        "pipelines.config.embed:EmbedConfig",
        ("model", "input", "output", "num_workers"),
    ),
    JobSummary(
        "serve",
        "Serves a registered model over HTTP: an upload or a URI in, an embedding out.",
        "pipelines.config.serve:ServeConfig",
        ("model", "host", "port", "num_replicas", "num_gpus", "uris"),
        media="model",
        is_path=False,
    ),
    JobSummary(
        "import-checkpoint",
        "Registers the encoders of a file of the published method.",
        "pipelines.config.import_checkpoint:ImportConfig",
        ("file", "modality", "model_prefix", "alias"),
        media="file",
    ),
)
JOBS = {summary.name: summary for summary in _SUMMARIES}

"""The table of jobs: all that `xkd --help` says, read without importing a single job."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pipelines.config.base import JobConfig


class JobSummary(NamedTuple):
    """What the command line knows about a job before it imports it."""

    name: str
    about: str
    schema_path: str
    """Module and class of its settings, `module:Class`."""
    first: tuple[str, ...]
    """The settings that people set first."""
    media: str | None = None
    """The setting that takes the first argument where that is no configuration."""

    @property
    def module(self) -> str:
        """The module under `ray_jobs`."""
        return self.name.replace("-", "_")

    def schema(self) -> type[JobConfig]:
        """Imports the schema of the job's settings."""
        module, _, name = self.schema_path.partition(":")
        found: type[JobConfig] = getattr(importlib.import_module(module), name)
        return found


_SUMMARIES = (
    JobSummary(
        "run",
        "The main job: media in, registered encoders and a report out.",
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
        "A folder or list of media becomes a clip dataset.",
        "pipelines.config.ingest:IngestConfig",
        ("input", "output", "dataset", "fold", "num_workers"),
    ),
    JobSummary(
        "dataset",
        "A page about a clip dataset: what it holds, what is doubtful, what leaks.",
        "pipelines.config.dataset:DatasetConfig",
        ("dataset", "against", "output"),
        media="dataset",
    ),
    JobSummary(
        "pretrain",
        "A clip dataset becomes encoders: XKD on Ray Train.",
        "pipelines.config.pretrain:PretrainConfig",
        ("dataset", "name", "output", "epochs", "batch_size", "num_workers", "use_gpu", "resume"),
    ),
    JobSummary(
        "sweep",
        "Many short trainings find the settings of a long one: Ray Tune over Ray Train.",
        "pipelines.config.sweep:SweepConfig",
        ("dataset", "name", "output", "space", "search.num_trials", "max_concurrent_trials"),
    ),
    JobSummary(
        "evaluate",
        "How good the features of an encoder are: probes, SVM, retrieval, per modality.",
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
        "The encoders of a checkpoint enter the registry; better ones get the alias.",
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
        "embed",
        "A registered model over any media becomes a Parquet of embeddings.",
        "pipelines.config.embed:EmbedConfig",
        ("model", "input", "output", "num_workers"),
    ),
    JobSummary(
        "import-checkpoint",
        "The encoders of a file of the published method enter the registry.",
        "pipelines.config.import_checkpoint:ImportConfig",
        ("file", "modality", "model_prefix", "alias"),
        media="file",
    ),
)
JOBS = {summary.name: summary for summary in _SUMMARIES}

"""Settings of the main job, which has those of every stage."""

from pydantic import Field, model_validator

from pipelines.config.base import JobConfig, Location, Name
from pipelines.config.evaluate import EvaluateSettings
from pipelines.config.ingest import IngestSettings, SyntheticSettings
from pipelines.config.pretrain import PretrainSettings, clip_mismatch
from pipelines.config.promote import PromoteSettings


class RunConfig(JobConfig):
    """`ray_jobs.run`: the main job, from media to registered encoders and a report."""

    name: Name
    """Name of the run. An existing run continues where it stopped."""
    input: Location | None = None
    """Folder of media, a list, or a URI, as for `ingest`. Default: synthetic clips."""
    output: Location
    """Folder that gets a folder for each run."""
    synthetic: SyntheticSettings = SyntheticSettings()
    ingest: IngestSettings = IngestSettings()
    pretrain: PretrainSettings
    evaluate: EvaluateSettings = Field(EvaluateSettings(), json_schema_extra={"may_change": True})
    promote: PromoteSettings = Field(PromoteSettings(), json_schema_extra={"may_change": True})

    @model_validator(mode="after")
    def _stages_fit(self) -> "RunConfig":
        problem = clip_mismatch(
            self.pretrain,
            frame_rate=self.ingest.frame_rate,
            sample_rate=self.ingest.sample_rate,
        )
        if problem:
            raise ValueError(problem)
        if self.ingest.dataset and self.input is None:
            raise ValueError(
                f"ingest.dataset ({self.ingest.dataset}) must come with input, its folder"
            )
        if self.pretrain.objective.teacher == "frozen" and self.evaluate.role == "teacher":
            raise ValueError(
                "evaluate.role (teacher) must be student with pretrain.objective.teacher (frozen), "
                "whose teachers learn nothing; set promote.role=student too"
            )
        if self.evaluate.role != self.promote.role:
            raise ValueError(
                f"promote.role ({self.promote.role}) must equal "
                f"evaluate.role ({self.evaluate.role}): what is registered is what was scored"
            )
        return self

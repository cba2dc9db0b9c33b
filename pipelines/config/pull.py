"""Settings of the job that pulls a registered model."""

from importlib.util import find_spec
from typing import Literal

from pydantic import field_validator

from pipelines.config.base import JobConfig, Location
from pipelines.paths import is_uri


def model_uri(model: str) -> str:
    """Returns `models:/NAME@ALIAS` for the same, with or without `models:/`."""
    return model if model.startswith("models:") else f"models:/{model}"


class PullConfig(JobConfig):
    """`ray_jobs.pull`: a registered model becomes a folder that needs no registry."""

    model: str
    """A registered model: `xkd-video@champion`, `xkd-audio/3`, with or without `models:/`."""
    output: Location
    """A new or empty folder for the model."""
    export: tuple[Literal["program", "onnx"], ...] = ()
    """Programs to write beside the weights: `program` for torch.export (`embeddings.pt2`), `onnx`
    for ONNX (`embeddings.onnx`), which needs `xkd[onnx]`. Takes up to minutes."""

    @field_validator("output")
    @classmethod
    def _is_a_folder(cls, output: str) -> str:
        if is_uri(output):
            raise ValueError(f"({output}) must be a path, not a URI")
        return output

    @field_validator("export")
    @classmethod
    def _can_export(cls, export: tuple[str, ...]) -> tuple[str, ...]:
        missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
        if "onnx" in export and missing:
            raise ValueError(f"(onnx) needs {' and '.join(missing)}: install xkd[onnx]")
        return export

    @property
    def uri(self) -> str:
        """The model as MLflow names it."""
        return model_uri(self.model)

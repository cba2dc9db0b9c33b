"""An encoder as an MLflow model that loads where this project has never been.

The model holds the weights, the settings, the card and a copy of the modules that it imports, found
by following imports. Its requirements are the installed versions of what those modules need.
"""

import ast
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType

from pipelines.models.encoder_files import SETTINGS_FILE, WEIGHTS_FILE, EncoderInfo, export_encoder
from pipelines.models.encoder_inputs import ARRAY_COLUMN, RATE_COLUMN
from pipelines.models.encoder_model import DEFAULT_BATCH_SIZE, ENCODER_ARTIFACT
from pipelines.paths import PACKAGES
from xkd_core.encoders import Encoder

# MLflow would copy the uv.lock of whatever project a job is started in.
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

_PACKAGES = ("pipelines", "xkd_core")
# Its path alone: importing the entry would name the model.
ENTRY = PACKAGES / "pipelines" / "models" / "encoder_entry.py"
CARD_ARTIFACT = "card"
CARD_FILE = "README.md"
REQUIREMENTS = (
    "av",
    "einops",
    "jaxtyping",
    "mlflow",
    "numpy",
    "pandas",
    "pydantic",
    "safetensors",
    "timm",
    "torch",
    "torchaudio",
    "torchvision",  # timm's
)


def pip_requirements() -> list[str]:
    """The installed versions; a local suffix such as +cpu is left out, as no index has it."""
    return [f"{name}=={version(name).split('+')[0]}" for name in REQUIREMENTS]


def stage(encoder: Encoder, info: EncoderInfo, folder: Path) -> str:
    """Writes `encoder/` and `code/` into a folder; returns a hash of what decides embeddings."""
    export_encoder(encoder, info, folder / "encoder")
    digest = hashlib.sha256((folder / "encoder" / WEIGHTS_FILE).read_bytes())
    settings = json.loads((folder / "encoder" / SETTINGS_FILE).read_text())
    del settings["provenance"]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for source in sorted(imported_files(ENTRY)):
        place = source.relative_to(PACKAGES)
        target = folder / "code" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        digest.update(f"{place}\n".encode() + source.read_bytes())
    return digest.hexdigest()


def imported_files(entry: Path) -> set[Path]:
    """This project's modules that a file imports, directly or not, without the file itself."""
    found: set[Path] = set()
    waiting = [entry]
    while waiting:
        new = set(_imports(waiting.pop())) - found
        found |= new
        waiting += new
    return found


def _imports(file: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            *folders, module = name.split(".")
            if folders and folders[0] in _PACKAGES:
                for depth in range(1, len(folders) + 1):
                    yield PACKAGES.joinpath(*folders[:depth], "__init__.py")
                yield PACKAGES.joinpath(*folders, f"{module}.py")


def save_package(staged: Path, info: EncoderInfo, card: str, path: Path, model: Model) -> None:
    """Makes an MLflow model of a staged encoder."""
    card_file = staged / CARD_FILE
    card_file.write_text(card)
    mlflow.pyfunc.save_model(
        path=str(path),
        mlflow_model=model,
        python_model=str(ENTRY),
        code_paths=[str(staged / "code" / package) for package in _PACKAGES],
        artifacts={
            ENCODER_ARTIFACT: str(staged / "encoder"),
            CARD_ARTIFACT: str(card_file),
        },
        signature=signature(info),
        input_example=input_example(info),
        # Given, so that MLflow does not run the model in a process of its own to find them.
        pip_requirements=pip_requirements(),
        metadata={"modality": info.modality},
    )


def signature(info: EncoderInfo) -> ModelSignature:
    """Columns of which each input has one of path, bytes and arrays; what may be set; the output.

    Arrays are of MLflow's type `any`, because its nested array type checks number by number.
    """
    columns: list[ColSpec | TensorSpec] = [
        ColSpec("string", "path", required=False),
        ColSpec("binary", "bytes", required=False),
        ColSpec(AnyType(), ARRAY_COLUMN[info.modality], required=False),
        ColSpec(AnyType(), RATE_COLUMN[info.modality], required=False),
    ]
    params = [
        ParamSpec("batch_size", "long", DEFAULT_BATCH_SIZE),
        ParamSpec("num_windows", "long", info.clips.num_windows),
    ]
    embedding = TensorSpec(np.dtype(np.float32), (-1, info.model.encoder.width))
    return ModelSignature(Schema(columns), Schema([embedding]), ParamSchema(params))


def input_example(info: EncoderInfo) -> pd.DataFrame:
    """A second of a gray ramp, or a tenth of a tone: small, because it is stored as JSON."""
    array: list[object]
    if info.modality == "video":
        num_frames = max(1, round(info.rate))
        ramp = np.linspace(0, 255, num_frames).astype(np.uint8)
        array = np.broadcast_to(ramp[:, None, None, None], (num_frames, 8, 8, 3)).tolist()
    else:
        times = np.arange(max(1, round(info.rate / 10))) / info.rate
        array = (8000 * np.sin(2 * np.pi * 440 * times)).astype(np.int16).tolist()
    return pd.DataFrame(
        {ARRAY_COLUMN[info.modality]: [array], RATE_COLUMN[info.modality]: [info.rate]}
    )

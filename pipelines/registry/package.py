"""An encoder as an MLflow model that loads where this project is not installed.

The folder of the model holds the weights, the settings, the card, and a copy of the modules that
it imports, found by following imports; MLflow, transformers and plain Python load the same folder.
The copies lie below a package of their own, named `xkd_` and the first eight digits of a hash of
weights, settings, and code, and import each other from there; see `xkd_code.py` for the reason. The
requirements are the installed versions of what they need.
"""

import ast
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType
from mlflow.types.schema import Array as MlflowArray

from pipelines.models.encoder_files import SETTINGS_FILE, WEIGHTS_FILE, EncoderInfo, export_encoder
from pipelines.models.encoder_inputs import ARRAY_COLUMN, RATE_COLUMN
from pipelines.models.encoder_model import DEFAULT_BATCH_SIZE
from pipelines.paths import PACKAGES
from pipelines.registry.renaming import renamed
from xkd_core.encoders import Encoder

_PACKAGES = ("pipelines", "xkd_core")
# Paths alone: importing the entry would name the model to MLflow.
_MODELS = Path("pipelines", "models")
_MODEL = _MODELS / "encoder_model.py"
_PACKAGE = _MODELS / "encoder_package.py"
"""Becomes the `__init__.py` of the code."""
_ENTRY = _MODELS / "encoder_entry.py"
_BESIDE = (_ENTRY, _MODELS / "xkd_code.py", _MODELS / "modeling_xkd.py")
"""Files that lie beside the code, for those who load it."""
CARD_FILE = "README.md"
_REQUIREMENTS = (
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


def _pip_requirements() -> list[str]:
    """The installed versions, without local suffixes such as +cpu, which no index has."""
    return [f"{name}=={version(name).split('+')[0]}" for name in _REQUIREMENTS]


def package_name(content: str) -> str:
    """The package that holds the code of a model with this hash of its content."""
    return f"xkd_{content[:8]}"


def stage(encoder: Encoder, info: EncoderInfo, folder: Path, *, packages: Path = PACKAGES) -> str:
    """Writes weights, settings, and code into a folder, as `save_package` takes them.

    Args:
        encoder: Its weights are written.
        info: The settings.
        folder: An empty folder.
        packages: The folder that holds the code.

    Returns:
        A hash of what decides embeddings: weights, settings, and code.

    Raises:
        ValueError: If the code names its modules in a way that cannot be renamed.
    """
    export_encoder(encoder, info, folder)
    digest = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes())
    settings = json.loads((folder / SETTINGS_FILE).read_text())
    del settings["provenance"]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    sources = {file: (packages / file).read_bytes() for file in traveling_files(packages)}
    beside = {file: (packages / file).read_bytes() for file in (*_BESIDE, _PACKAGE)}
    for file, source in {**beside, **sources}.items():
        digest.update(f"{file}\n".encode() + source)
    content = digest.hexdigest()
    _write_code(sources, package_name(content), folder / "code", beside[_PACKAGE])
    for file in _BESIDE:
        (folder / file.name).write_bytes(beside[file])
    return content


def _write_code(
    sources: Mapping[Path, bytes], package: str, folder: Path, package_source: bytes
) -> None:
    """Writes modules below a package, by which they then import each other."""
    modules = {".".join(file.with_suffix("").parts) for file in sources}
    modules = {module.removesuffix(".__init__") for module in modules} - set(_PACKAGES)
    (folder / package).mkdir(parents=True)
    text = package_source.replace(b"xkd_1a2b3c4d", package.encode())
    (folder / package / "__init__.py").write_bytes(renamed(text, package, modules))
    for file, source in sources.items():
        target = folder / package / file
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.write_bytes(renamed(source, package, modules))
        except ValueError as error:
            raise ValueError(f"{file}, {error}") from error


def traveling_files(packages: Path) -> list[Path]:
    """The modules that the model imports, directly or not, and itself; relative and sorted."""
    found = {_MODEL}
    waiting = [_MODEL]
    while waiting:
        new = set(_imports(packages, waiting.pop())) - found
        found |= new
        waiting += new
    folders = {parent for file in found for parent in file.parents if parent.name}
    return sorted(found | {folder / "__init__.py" for folder in folders})


def _imports(packages: Path, file: Path) -> Iterator[Path]:
    """The modules of this project that a module imports, by name or as a name of a package."""
    for name in _imported_names((packages / file).read_bytes()):
        first, *rest = name.split(".")
        module = Path(first, *rest)
        if first in _PACKAGES and (packages / module.with_suffix(".py")).is_file():
            yield module.with_suffix(".py")
        elif first in _PACKAGES and (packages / module / "__init__.py").is_file():
            yield module / "__init__.py"


@lru_cache(maxsize=512)
def _imported_names(source: bytes) -> tuple[str, ...]:
    """What a module imports; the code of a second encoder is not parsed again."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)


def save_package(staged: Path, info: EncoderInfo, card: str, path: Path, model: Model) -> None:
    """Makes an MLflow model of a staged encoder.

    Args:
        staged: What `stage` wrote; the card is written beside it.
        info: As it was staged.
        card: In Markdown.
        path: The folder of the model, which is made.
        model: What MLflow knows about it so far.
    """
    (staged / CARD_FILE).write_text(card)
    written = [file for file in staged.iterdir() if file.is_file()]
    mlflow.pyfunc.save_model(
        path=str(path),
        mlflow_model=model,
        python_model=str(staged / _ENTRY.name),
        code_paths=[str(folder) for folder in (staged / "code").iterdir()],
        signature=signature(info),
        input_example=input_example(info),
        # Without these MLflow would run the model in another process to find its imports.
        pip_requirements=_pip_requirements(),
        metadata={"modality": info.modality, "width": info.model.encoder.width},
    )
    for file in written:  # MLflow has the entry already
        shutil.copyfile(file, path / file.name)


def signature(info: EncoderInfo) -> ModelSignature:
    """The columns (each input has a path, bytes, or an array), the parameters, and the output.

    Columns have MLflow's type `any`, because it refuses empty columns and missing values of other
    types, and checks nested arrays number by number. The output is an array for each row, from
    which `spark_udf` knows its result type.
    """
    names = ("path", "bytes", ARRAY_COLUMN[info.modality], RATE_COLUMN[info.modality])
    columns: list[ColSpec | TensorSpec] = [
        ColSpec(AnyType(), name, required=False) for name in names
    ]
    params = [
        ParamSpec("batch_size", "long", DEFAULT_BATCH_SIZE),
        ParamSpec("formats", "string", "common"),
        ParamSpec("num_windows", "long", info.clips.num_windows),
        ParamSpec("on_error", "string", "raise"),
    ]
    output: list[ColSpec | TensorSpec] = [ColSpec(MlflowArray(DataType.float))]
    return ModelSignature(Schema(columns), Schema(output), ParamSchema(params))


def input_example(info: EncoderInfo) -> pd.DataFrame:
    """One second of a gray ramp, or a tenth of a second of a tone; small, for it becomes JSON."""
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

"""Fetches whole registered models, verified, for `xkd pull` and for whoever runs their code."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.config.pull import PullConfig
from pipelines.errors import UserError
from pipelines.files import replacing, write_failure
from pipelines.models.encoder_export import ONNX_FILE, PROGRAM_FILE, export_onnx, export_program
from pipelines.models.encoder_module import load_module
from pipelines.redaction import one_line
from pipelines.registry.manifest import check_files, remove_leftovers
from pipelines.registry.signing import check_signature
from pipelines.registry.uri import EncoderVersion, resolve_model
from pipelines.tracking.server import tracking_uri


def fetch(version: EncoderVersion, server: str, folder: Path) -> Path:
    """Downloads a version and makes sure that it is what was registered.

    Args:
        version: The version.
        server: Where MLflow keeps it.
        folder: An existing folder, which gets the files.

    Raises:
        UserError: If it cannot be downloaded, or a file was changed, which it names.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        client = MlflowClient(server)
        # Not models:/NAME/VERSION, which MLflow looks up at the global registry.
        source = client.get_model_version_download_uri(version.name, str(version.version))
        download_artifacts(source, dst_path=str(folder), tracking_uri=server)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"model ({version.uri}): its files cannot be fetched: {one_line(error)}"
        ) from error
    found = next(folder.rglob("MLmodel"), None)
    if found is None:
        raise UserError(f"model ({version.uri}): its files hold no MLmodel")
    root = found.parent
    remove_leftovers(root)
    check_files(root, version.manifest, version.uri)
    check_signature(root, version.uri)
    return root


def pull(config: PullConfig) -> EncoderVersion:
    """Writes the folder of a registered model, and exported programs that are asked for.

    Raises:
        UserError: As `fetch`, or if the folder cannot be written or holds something else.
    """
    version = resolve_model(config.uri, config.tracking)
    output = Path(config.output)
    check_output(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        hidden = TemporaryDirectory(dir=output.parent, prefix=".xkd-pull-")
        with hidden as staging, replacing(output) as partial:
            fetch(version, tracking_uri(config.tracking), Path(staging)).rename(partial)
            _export(partial, config)
    except OSError as error:
        raise UserError(f"output ({output}) cannot be written: {write_failure(error)}") from error
    return version


def check_output(output: Path) -> None:
    """Makes sure that nothing is overwritten.

    Raises:
        UserError: If the folder holds something.
    """
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"output ({output}) must be a new or empty folder, but it holds files")
    if output.exists() and not output.is_dir():
        raise UserError(f"output ({output}) must be a folder, but it is a file")


def _export(folder: Path, config: PullConfig) -> None:
    if not config.export:
        return
    module = load_module(folder)
    if "program" in config.export:
        export_program(module, folder / PROGRAM_FILE)
    if "onnx" in config.export:
        export_onnx(module, folder / ONNX_FILE)

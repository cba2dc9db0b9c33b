"""Weights and settings of a registered encoder, for `pretrain init=`.

Nothing of a version is run; its code is fetched only because a signature covers all files.
Applications load a version with `mlflow.pyfunc` instead, which runs its code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.config.base import TrackingSettings
from pipelines.errors import UserError
from pipelines.models.encoder_files import (
    OLDER_FOLDER,
    OLDER_SETTINGS_FILE,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    weights_file,
)
from pipelines.redaction import one_line
from pipelines.registry.manifest import MANIFEST_FILE, check_files
from pipelines.registry.pull import fetch
from pipelines.registry.signing import wants_signature
from pipelines.registry.uri import EncoderVersion, resolve_model
from pipelines.tracking.server import tracking_uri


@dataclass(frozen=True)
class RegisteredEncoder:
    """A version of a registered encoder whose files can be fetched."""

    version: EncoderVersion
    tags: Mapping[str, str]
    """What the registry says of the version."""
    server: str
    """Where MLflow keeps it."""

    @property
    def content(self) -> str:
        """Hash of its weights, settings and code."""
        return self.tags.get("xkd.content", "")

    @property
    def model_id(self) -> str:
        """The logged model that the version was made from."""
        return self.tags.get("xkd.model_id", "")

    def fetch(self, folder: Path, *, weights: bool) -> Path:
        """Downloads the whole version, or its settings alone.

        Returns:
            The folder that `load_encoder` or `read_encoder_info` reads.

        Raises:
            UserError: If it cannot be fetched, is not what was registered, or lacks the signature
                that `XKD_PUBLIC_KEY` asks for.
        """
        if weights or wants_signature():
            model = fetch(self.version, self.server, folder)
            return model if (model / SETTINGS_FILE).exists() else model / OLDER_FOLDER
        name, number = self.version.name, str(self.version.version)
        files = [MANIFEST_FILE, SETTINGS_FILE]
        if self.version.manifest is None:
            files = [f"{OLDER_FOLDER}/{OLDER_SETTINGS_FILE}"]
        try:
            # Not models:/NAME/VERSION, which MLflow looks up at the global registry.
            root = MlflowClient(self.server).get_model_version_download_uri(name, number)
            for file in files:
                download_artifacts(f"{root}/{file}", dst_path=str(folder), tracking_uri=self.server)
        except (MlflowException, OSError) as error:
            raise UserError(
                f"model ({self.version.uri}): its files cannot be fetched: {one_line(error)}"
            ) from error
        check_files(folder, self.version.manifest, self.version.uri, (SETTINGS_FILE,))
        return folder

    def folder(self, copies: Path | None) -> Path:
        """Returns the folder of settings and weights: where it lies on a local disk, or a copy.

        Args:
            copies: Folder that gets the copy, which every worker sees. Default: TMPDIR.

        Raises:
            UserError: If they cannot be fetched, are not what was registered, or lack the signature
                that `XKD_PUBLIC_KEY` asks for.
        """
        name, number = self.version.name, str(self.version.version)
        try:
            root_uri = MlflowClient(self.server).get_model_version_download_uri(name, number)
            target = None
            if not root_uri.startswith(("/", "file:")) and copies is not None:
                target = copies / f"{name}-{number}"
                target.mkdir(parents=True, exist_ok=True)
            root = Path(
                download_artifacts(
                    artifact_uri=root_uri,
                    dst_path=str(target) if target else None,
                    tracking_uri=self.server,
                )
            )
        except (MlflowException, OSError) as error:
            raise UserError(
                f"model ({self.version.uri}) cannot be fetched: {one_line(error)}"
            ) from error
        check_files(root, self.version.manifest, self.version.uri, in_use=True)
        self._check_signed()
        root = root if (root / SETTINGS_FILE).exists() else root / OLDER_FOLDER
        if not weights_file(root).exists():
            raise UserError(f"model ({self.version.uri}): its files hold no {WEIGHTS_FILE}")
        return root

    def _check_signed(self) -> None:
        """Verifies the signature on a clean copy: bytecode beside the code would be refused.

        The signature covers the manifest, whose hash is that of the version, as for the files in
        use.
        """
        if wants_signature():
            with TemporaryDirectory(prefix="xkd-model-") as folder:
                fetch(self.version, self.server, Path(folder))


def registered_encoder(uri: str, tracking: TrackingSettings) -> RegisteredEncoder:
    """Finds the version that a `models:/...` URI refers to now.

    Raises:
        UserError: As `resolve_model`.
    """
    version = resolve_model(uri, tracking)
    server = tracking_uri(tracking)
    tags = MlflowClient(server).get_model_version(version.name, str(version.version)).tags
    return RegisteredEncoder(version, tags, server)

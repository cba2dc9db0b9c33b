"""Features on disk, one file for each encoder and shard, so that no clip is embedded twice.

    CACHE/5b1e0c.../features.json    the encoder, the dataset, and the views that these are of
    CACHE/5b1e0c.../000012.npz       the clips of one shard

The folder is named by a hash of what decides the features: the weights, the dataset id, windows,
crops and size, and what is kept of them. Files are written whole or not at all; a shard counts as
done if its file has all the clips that are asked for. NumPy reads them without pickle.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipelines.config.evaluate import EvaluateSettings
from pipelines.errors import UserError
from pipelines.evaluation.embedder import Embedded
from pipelines.evaluation.networks import EvaluatedEncoder
from pipelines.files import replacing, write_json
from pipelines.filesystems import store_failure
from pipelines.storage import AnyPath
from pipelines.transfers import on_disk

Array = NDArray[Any]
_KEY_FILE = "features.json"


@dataclass(frozen=True)
class FeatureCache:
    """The features of one encoder on one dataset."""

    folder: AnyPath
    encoder: str
    """Hash of the encoder's content."""
    wants_logits: bool = False
    """Whether outputs of the head are asked for; a file without them does not do then."""

    @classmethod
    def open(
        cls,
        root: AnyPath,
        modality: str,
        evaluated: EvaluatedEncoder,
        dataset_id: str,
        settings: EvaluateSettings,
    ) -> "FeatureCache":
        """Finds the folder of an encoder, and makes it if it is new.

        Raises:
            UserError: If it holds the features of something else.
        """
        measures = settings.measures
        key = {
            "format_version": 1,
            "modality": modality,
            "encoder": evaluated.content_hash(),
            "dataset_id": dataset_id,
            "num_windows": settings.num_windows,
            "num_crops": settings.num_crops if modality == "video" else 1,
            "video_size": settings.video_size if modality == "video" else None,
            "layers": settings.num_layers if "layers" in measures else 0,
            "tokens": "attentive" in measures,
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / _KEY_FILE
        if not file.exists():
            write_json(file, key)
        elif (there := _read_key(file)) != key:
            wrong = next((k for k in key if there.get(k) != key[k]), "format_version")
            raise UserError(
                f"cache ({folder}) holds features of {wrong} {there.get(wrong)}, not of "
                f"{key[wrong]}: delete that folder"
            )
        has_head = evaluated.head is not None
        return cls(folder, str(key["encoder"]), has_head and "retrieval" in measures)

    def read(self, name: str, clip_ids: tuple[str, ...], wanted: Array) -> Embedded | None:
        """Reads the clips of a shard; None if they are not all there.

        Args:
            name: The shard.
            clip_ids: Its clips that are asked for.
            wanted: Positions of those whose head outputs are asked for.

        Raises:
            UserError: If the file is damaged, or of another encoder.
        """
        file = self.folder / f"{name}.npz"
        if not file.exists():
            return None
        arrays = _read_arrays(file)
        if str(arrays.get("encoder")) != self.encoder:
            raise UserError(
                f"cache ({file}) holds features of encoder {str(arrays.get('encoder'))[:12]}, not "
                f"of {self.encoder[:12]}: delete it"
            )
        if arrays["clip_ids"].tolist() != list(clip_ids):
            return None
        logits = None
        if self.wants_logits:
            if "logits" not in arrays or not np.isin(wanted, arrays["wanted"]).all():
                return None
            logits = np.full((len(clip_ids), arrays["logits"].shape[1]), np.nan, np.float32)
            logits[arrays["wanted"]] = arrays["logits"]
        return Embedded(
            arrays["owners"], arrays["pooled"], arrays.get("layers"), logits, arrays.get("tokens")
        )

    def write(self, name: str, clip_ids: tuple[str, ...], wanted: Array, found: Embedded) -> None:
        """Writes the clips of a shard."""
        arrays: dict[str, Array] = {
            "encoder": np.array(self.encoder),
            "clip_ids": np.array(clip_ids, dtype=np.str_),
            "owners": found.owners,
            "pooled": found.pooled,
        }
        if found.layers is not None:
            arrays["layers"] = found.layers
        if found.tokens is not None:
            arrays["tokens"] = found.tokens
        if found.logits is not None:
            arrays |= {"wanted": wanted, "logits": found.logits[wanted]}
        with replacing(self.folder / f"{name}.npz") as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


def _read_arrays(file: AnyPath) -> dict[str, Array]:
    try:
        with on_disk(file) as local, np.load(local, allow_pickle=False) as stored:
            return dict(stored.items())
    except UserError:
        raise
    except OSError as error:  # of a disk or a store: the file may be as it should
        raise UserError(f"cache ({file}) cannot be read: {store_failure(error)}") from error
    except (ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"cache ({file}) is damaged: delete it") from error


def _read_key(file: AnyPath) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = None
    return values if isinstance(values, dict) else {}

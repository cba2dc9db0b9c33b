"""Writes a clip dataset as WebDataset: tar files whose members of one name are one sample.

    shard-000000.tar
        3f2a....frames.npy      uint8 (T, H, W, 3); only with a picture
        3f2a....waveform.npy    int16 (S,); only with sound
        3f2a....json            the other columns of the row
        3f2a....label.txt       only with one label
        51bc....frames.npy      the next clip
    manifest.json               written last: number of clips and shards, dataset id

Equal datasets and settings give equal files: clips in the order of the dataset, without times.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.config.export import ExportConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.row_tensors import read_frames, read_waveform
from pipelines.dataset.schema import CLIPS, MANIFEST, with_added
from pipelines.dataset.shards import open_parquet
from pipelines.errors import UserError
from pipelines.files import is_temporary, replacing, write_failure, write_json
from pipelines.progress import OnProgress
from pipelines.storage import AnyPath, path_of

_TENSORS = ("frames", "waveform")
Members = dict[str, bytes]


@dataclass
class Exported:
    """What an export has written."""

    clips: int = 0
    shards: list[str] = field(default_factory=list)


def check_export(config: ExportConfig) -> None:
    """Makes sure that there are clips to export, and that nothing is overwritten.

    Raises:
        UserError: If not.
    """
    dataset = ClipDataset.open(config.dataset)
    known = {str(split) for split in dataset.index.split.unique()}
    unknown = [split for split in config.splits if split not in known]
    if unknown:
        names = ", ".join(sorted(known - {""})) or "none"
        raise UserError(f"splits ({', '.join(unknown)}) must be of the dataset, which has {names}")
    output = path_of(config.output)
    is_folder = output.is_dir()
    there = [path.name for path in output.iterdir()] if is_folder else []
    if (output.exists() and not is_folder) or not all(map(is_temporary, there)):
        raise UserError(f"output ({output}) must be a new or empty folder")


def export_webdataset(config: ExportConfig, on_progress: OnProgress) -> Exported:
    """Writes the tar files of a dataset, then its manifest.

    Raises:
        UserError: If the dataset is damaged, or the output cannot be written.
    """
    dataset = ClipDataset.open(config.dataset)
    output = path_of(config.output)
    done = Exported()
    samples = _samples(dataset, config)
    waiting = next(samples, None)
    try:
        output.mkdir(parents=True, exist_ok=True)
        while waiting is not None:
            name = f"shard-{len(done.shards):06d}.tar"
            waiting = _write_shard(output / name, waiting, samples, config, done)
            done.shards.append(name)
            on_progress(done.clips, dataset.num_clips, name)
        write_json(
            output / MANIFEST,
            {"dataset_id": dataset.dataset_id, "clips": done.clips, "shards": done.shards},
        )
    except OSError as error:
        raise UserError(f"output ({output}) cannot be written: {write_failure(error)}") from error
    return done


def _write_shard(
    file: AnyPath,
    first: tuple[str, Members],
    samples: Iterator[tuple[str, Members]],
    config: ExportConfig,
    done: Exported,
) -> tuple[str, Members] | None:
    """Writes samples until the file is full; returns the one after it."""
    sample: tuple[str, Members] | None = first
    num_bytes = 0
    with replacing(file) as partial, tarfile.open(partial, "w") as archive:
        while sample is not None:
            name, members = sample
            size = sum(map(len, members.values()))
            if num_bytes and num_bytes + size > config.max_shard_bytes:
                return sample
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            num_bytes += size
            done.clips += 1
            sample = next(samples, None)
    return None


def _samples(dataset: ClipDataset, config: ExportConfig) -> Iterator[tuple[str, Members]]:
    """Yields the name and the members of each clip."""
    for shard in dataset.shards:
        with open_parquet(shard) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, use_threads=False)
                for row, values in enumerate(_values(table)):
                    if not config.splits or values["split"] in config.splits:
                        yield str(values["clip_id"]), _members(table, row, shard, values)


def _values(table: pa.Table) -> list[dict[str, Any]]:
    """Returns the columns of each row that are no tensors."""
    columns = [name for name in CLIPS.names if name not in _TENSORS]
    return with_added(table, columns).to_pylist()


def _members(table: pa.Table, row: int, shard: str, values: Mapping[str, Any]) -> Members:
    members: Members = {}
    frames = read_frames(table, row, shard=shard)
    if frames is not None:
        members["frames.npy"] = _npy(frames)
    waveform = read_waveform(table, row)
    if waveform is not None:
        members["waveform.npy"] = _npy(waveform)
    members["json"] = json.dumps(values).encode()
    if values["label"]:
        members["label.txt"] = str(values["label"]).encode()
    return members


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()

"""Embeds the clips of one shard with all encoders: in this process, or as a worker of the graph.

The graph is that of ingest and embed (`unit_graph`). A worker writes what it finds to the cache,
whole files only, so a unit that is run twice writes the same again, and an evaluation that was
stopped goes on from there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.config.base import Datasets
from pipelines.config.evaluate import EvaluateSettings, OfficialSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.joined import open_datasets
from pipelines.errors import UserError
from pipelines.evaluation.cache import FeatureCache
from pipelines.evaluation.choice import Chosen, retrieval_clips
from pipelines.evaluation.embedder import Embedded, Embedder
from pipelines.evaluation.networks import EncoderSource, Network, load_network
from pipelines.evaluation.official import choose_clips
from pipelines.files import write_failure, write_json
from pipelines.ingest.unit_runner import UnitOutcome
from pipelines.storage import AnyPath, path_of

Array = NDArray[Any]
DONE_FOLDER = "done"
"""In the scratch folder of a run: a file for each complete unit, as `run_units` looks for."""


@dataclass(frozen=True)
class ShardPart:
    """The chosen clips of one shard."""

    name: str
    """Its number and name: shards of several datasets may have the same name."""
    begin: int
    end: int
    """Positions among the chosen clips."""


def shard_parts(dataset: ClipDataset, chosen: Chosen) -> list[ShardPart]:
    """Returns the chosen clips by shard, in order; one empty part if there are none."""
    if not len(chosen.rows):
        return [ShardPart("none", 0, 0)]
    index = dataset.index
    shard = np.searchsorted(index.group_ends, index.group[chosen.rows], side="right")
    numbers, begins = np.unique(shard, return_index=True)
    ends = [*begins[1:].tolist(), len(shard)]
    return [
        ShardPart(f"{number:06d}-{PurePosixPath(index.shards[number]).stem}", begin, end)
        for number, begin, end in zip(numbers.tolist(), begins.tolist(), ends, strict=True)
    ]


class ShardEmbedder:
    """Embeds shards with the encoders of all networks, or finds what a cache holds of them."""

    def __init__(
        self,
        networks: Mapping[str, Network],
        dataset: ClipDataset,
        chosen: Chosen,
        settings: EvaluateSettings,
        cache: AnyPath | None = None,
    ) -> None:
        self._dataset, self._chosen, self._settings = dataset, chosen, settings
        self.in_retrieval = retrieval_clips(dataset, chosen, settings.retrieval_max_clips)
        self._embedders: dict[str, Embedder] = {}
        self._caches: dict[str, FeatureCache | None] = {}
        for name, network in networks.items():
            for modality, evaluated in network.items():
                path = f"{modality}/{name}"
                self._caches[path] = None
                if cache is not None:
                    self._caches[path] = FeatureCache.open(
                        cache, modality, evaluated, dataset.dataset_id, settings
                    )
                self._embedders[path] = Embedder(modality, evaluated, settings)

    def embed(self, part: ShardPart) -> dict[str, Embedded]:
        """Returns what each encoder gives for the clips of a shard.

        Raises:
            UserError: If the cache holds something else.
        """
        here = slice(part.begin, part.end)
        ids, wanted = self._chosen.clip_ids[here], np.flatnonzero(self.in_retrieval[here])
        found = {
            path: None if cache is None else cache.read(part.name, ids, wanted)
            for path, cache in self._caches.items()
        }
        missing = [path for path, one in found.items() if one is None]
        for path, one in self._embed(part, missing).items():
            found[path] = one
            if (cache := self._caches[path]) is not None and len(ids):
                cache.write(part.name, ids, wanted, one)
        return {path: one for path, one in found.items() if one is not None}

    def lacks(self, part: ShardPart) -> bool:
        """Whether an encoder has no features of a shard in its cache."""
        here = slice(part.begin, part.end)
        ids, wanted = self._chosen.clip_ids[here], np.flatnonzero(self.in_retrieval[here])
        return any(
            cache is None or cache.read(part.name, ids, wanted) is None
            for cache in self._caches.values()
        )

    def _embed(self, part: ShardPart, paths: Sequence[str]) -> dict[str, Embedded]:
        """Decodes the clips once for all encoders, a batch at a time."""
        if not paths:
            return {}
        found: dict[str, list[Embedded]] = {path: [] for path in paths}
        size = self._settings.batch_size
        begins = list(range(part.begin, max(part.end, part.begin + 1), size))
        for begin in begins:
            rows = self._chosen.rows[begin : min(begin + size, part.end)]
            clips = list(self._dataset.clips(rows))
            for path in paths:
                found[path].append(self._embedders[path].embed(clips))
        offsets = [begin - part.begin for begin in begins]
        return {path: _joined(parts, offsets) for path, parts in found.items()}


def _joined(parts: Sequence[Embedded], offsets: Sequence[int]) -> Embedded:
    """Puts batches one after another; owners count from the first clip of the shard."""
    if len(parts) == 1:
        return parts[0]

    def together(arrays: Sequence[Array | None]) -> Array | None:
        there = [array for array in arrays if array is not None]
        return np.concatenate(there) if there else None

    owners = [one.owners + offset for one, offset in zip(parts, offsets, strict=True)]
    return Embedded(
        np.concatenate(owners),
        np.concatenate([one.pooled for one in parts]),
        together([one.layers for one in parts]),
        together([one.logits for one in parts]),
        together([one.tokens for one in parts]),
    )


class FeatureWorker:
    """The Ray actor that embeds shards into the cache, and yields one small row for each."""

    def __init__(
        self,
        sources: Mapping[str, Sequence[EncoderSource]],
        datasets: Datasets,
        settings: dict[str, Any],
        official: dict[str, Any] | None,
        cache: str,
        scratch: str,
    ) -> None:
        values = EvaluateSettings.model_validate(settings)
        opened = open_datasets(datasets)
        lists = OfficialSettings.model_validate(official) if official else None
        chosen = choose_clips(opened, values, lists)
        networks = load_on_device(sources, values)
        self._embedder = ShardEmbedder(networks, opened, chosen, values, path_of(cache))
        self._done = path_of(scratch) / DONE_FOLDER

    @torch.no_grad()
    def __call__(self, unit: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Embeds a shard; the row reports it, or the error in `failed`."""
        part = ShardPart(unit["name"], unit["begin"], unit["end"])
        try:
            self._embedder.embed(part)
            write_json(self._done / f"{part.name}.parquet", {})
            yield asdict(UnitOutcome(part.name, clips=part.end - part.begin))
        except UserError as error:
            yield asdict(UnitOutcome(part.name, failed=f"cannot be used: {error}"))
        except OSError as error:
            yield asdict(
                UnitOutcome(part.name, failed=f"cannot be written: {write_failure(error)}")
            )


def load_on_device(
    sources: Mapping[str, Sequence[EncoderSource]], settings: EvaluateSettings
) -> dict[str, Network]:
    """Loads networks onto the GPU that Ray gave this process, or the CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks: dict[str, Network] = {}
    for name, one in sources.items():
        network = load_network(one, trained=name != "untrained", seed=settings.seed)
        for evaluated in network.values():
            evaluated.encoder.to(device)
            if evaluated.head is not None:
                evaluated.head.to(device)
        networks[name] = network
    return networks
